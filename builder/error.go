package builder

import (
	"errors"
	"fmt"
)

// Kind classifies an error by who has to act. Values travel the wire as error
// codes: append only, never rename. The schema of build.failed lists the same set.
type Kind string

// Kinds of errors.
const (
	KindInvalidRequest     Kind = "invalid_request"
	KindConflict           Kind = "conflict"
	KindBaseNotFound       Kind = "base_not_found"
	KindSourceNotFound     Kind = "source_not_found"
	KindCommandFailed      Kind = "command_failed"
	KindRequirementsFailed Kind = "requirements_failed"
	KindPushDenied         Kind = "push_denied"
	KindPullDenied         Kind = "pull_denied"
	KindTimeout            Kind = "timeout"
	KindOutOfMemory        Kind = "out_of_memory"
	KindDiskFull           Kind = "disk_full"
	KindCanceled           Kind = "canceled"
	KindUnavailable        Kind = "unavailable"
	KindQueueFull          Kind = "queue_full"
	// KindInterrupted and KindLeaseLost never travel: nobody failed.
	KindInterrupted Kind = "interrupted"
	KindLeaseLost   Kind = "lease_lost"
)

// Error is an error of a known kind. Op says what was being done, in the present
// progressive ("resolving base image python:3.12").
type Error struct {
	Kind Kind
	Op   string
	Err  error
}

// Error returns "op: cause".
func (e *Error) Error() string {
	if e.Op == "" {
		return e.Err.Error()
	}
	return e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose cause is formatted as by fmt.Errorf.
func Errorf(kind Kind, op, format string, args ...any) *Error {
	return &Error{Kind: kind, Op: op, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the outermost *Error in err, and KindUnavailable for
// any other error: what nobody classified is ours to retry.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindUnavailable
}

// ErrImageMissing is matched by the error of Registry.Verify when the registry
// answered that it has no such manifest. Any other error leaves that open.
var ErrImageMissing = errors.New("image is not in the registry")
