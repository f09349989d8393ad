package archive

import (
	"errors"

	"kiln/builder"
)

func invalid(format string, args ...any) error {
	return builder.Errorf(builder.KindInvalidRequest, "", format, args...)
}

func unavailable(what string, err error) error {
	return builder.Errorf(builder.KindUnavailable, "", "%s: %w", what, err)
}

func isOurs(err error) bool {
	_, ok := errors.AsType[*builder.Error](err)
	return ok
}
