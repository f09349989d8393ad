package registry

import (
	"errors"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"kiln/builder"
)

// status returns the HTTP status of a registry's error answer, 0 for other errors.
func status(err error) int {
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		return answer.StatusCode
	}
	return 0
}

// classify turns an error of the registry client into one of a known kind. Bodies
// and URLs of answers are shortened; the client has redacted credentials in URLs.
func classify(err error, op string, missing, denied builder.Kind) error {
	kind := builder.KindUnavailable
	switch status(err) {
	case http.StatusNotFound:
		kind = missing
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = denied
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		// A registry that refuses what it was sent refuses it again.
		kind = denied
	}
	return &builder.Error{Kind: kind, Op: op, Err: &answerError{err}}
}

// answerError bounds the text of an error and keeps its chain.
type answerError struct{ err error }

// Error returns the bounded text.
func (e *answerError) Error() string { return short(e.err) }

// Unwrap returns the whole error.
func (e *answerError) Unwrap() error { return e.err }
