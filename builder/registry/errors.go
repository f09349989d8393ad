package registry

import (
	"errors"
	"net/http"
	"strings"

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

// isMissing reports whether the registry answered that it has no such manifest. A
// 404 to anything else says that something is wrong with the registry.
func isMissing(err error) bool {
	answer, ok := errors.AsType[*transport.Error](err)
	return ok && (answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusGone) &&
		answer.Request != nil && strings.Contains(answer.Request.URL.Path, "/manifests/")
}

// says reports whether the registry's answer has the code.
func says(err error, code transport.ErrorCode) bool {
	answer, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return false
	}
	for _, d := range answer.Errors {
		if d.Code == code {
			return true
		}
	}
	return false
}

// pullError classifies an error of reading.
func (r *Registry) pullError(op string, err error) error {
	kind := builder.KindUnavailable
	switch code := status(err); {
	case isMissing(err):
		kind = builder.KindBaseNotFound
	case code == http.StatusUnauthorized || code == http.StatusForbidden || errors.Is(err, errDenied):
		kind = builder.KindPullDenied
	}
	return r.fail(kind, op, err)
}

// pushError classifies an error of writing. What a registry refuses for good (a
// repository that it does not create, an immutable tag, a quota) it refuses again.
func (r *Registry) pushError(op string, err error) error {
	kind := builder.KindUnavailable
	if errors.Is(err, errDenied) {
		kind = builder.KindPushDenied
	}
	switch status(err) {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusConflict,
		http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge:
		kind = builder.KindPushDenied
	case http.StatusNotFound:
		if says(err, transport.NameUnknownErrorCode) {
			kind = builder.KindPushDenied
		}
	case http.StatusBadRequest:
		if says(err, transport.NameInvalidErrorCode) || says(err, transport.TagInvalidErrorCode) || says(err, transport.DeniedErrorCode) {
			kind = builder.KindPushDenied
		}
	}
	return r.fail(kind, op, err)
}

// fail makes an error of a kind whose text is bounded and without credentials. One
// that has a kind already is returned as it is.
func (r *Registry) fail(kind builder.Kind, op string, err error) error {
	if _, ok := errors.AsType[*builder.Error](err); ok {
		return err
	}
	return &builder.Error{Kind: kind, Op: op, Err: &answerError{text: r.redactor.Text(short(err.Error())), err: err}}
}

// answerError shows a bounded text and keeps the chain.
type answerError struct {
	text string
	err  error
}

// Error returns the bounded text.
func (e *answerError) Error() string { return e.text }

// Unwrap returns the whole error.
func (e *answerError) Unwrap() error { return e.err }

// short makes one line of at most 500 bytes.
func short(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}
