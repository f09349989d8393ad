package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"kiln/builder"
)

// query finds the query of a URL in a text: that of a signed URL is a credential.
var query = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s?"'<>]*)\?[^\s"'<>]*`)

// maxMessage bounds the text of an error, in bytes.
const maxMessage = 600

// border makes the error that leaves this package: of a kind, one bounded line, without
// credentials. Secrets are the values that the operation used.
func border(ctx context.Context, op string, secrets []string, err error) error {
	if err == nil {
		return nil
	}
	kind := kindOf(err)
	text := err.Error()
	if failed, ok := errors.AsType[*url.Error](err); ok && !isOurs(err) {
		text = failed.Err.Error() // without the URL, which may be one of a redirect
	}
	if cause := context.Cause(ctx); cause != nil {
		kind, text = builder.KindUnavailable, cause.Error()+": "+text
	}
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	text = query.ReplaceAllString(builder.NewRedactor(secrets...).Text(text), "$1?…")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return &builder.Error{Kind: kind, Op: op, Err: &shownError{text: text, err: err}}
}

// shownError shows a bounded text and keeps the chain.
type shownError struct {
	text string
	err  error
}

// Error returns the bounded text.
func (e *shownError) Error() string { return e.text }

// Unwrap returns the whole error.
func (e *shownError) Unwrap() error { return e.err }

func isOurs(err error) bool {
	_, ok := errors.AsType[*builder.Error](err)
	return ok
}

// kindOf classifies what nobody has classified: only what cannot get better by itself
// is somebody's fault.
func kindOf(err error) builder.Kind {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case isOurs(err):
		return builder.KindOf(err)
	case errors.Is(err, syscall.ENOSPC):
		return builder.KindDiskFull
	case untrusted:
		return builder.KindSourceNotFound
	default:
		return builder.KindUnavailable
	}
}

// shown is a name from outside in an error.
func shown(name string) string { return fmt.Sprintf("%.80q", name) }

func notFound(format string, args ...any) error {
	return builder.Errorf(builder.KindSourceNotFound, "", format, args...)
}

// answered makes an error of an HTTP status that is not a success. Hint says where
// credentials are taken from.
func answered(status int, hint string) error {
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return notFound("the server denies access (%d); %s", status, hint)
	case status == http.StatusNotFound || status == http.StatusGone:
		return notFound("the server has nothing there (%d), or does not show it; %s", status, hint)
	case status >= http.StatusInternalServerError || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		return builder.Errorf(builder.KindUnavailable, "", "the server answered %d %s", status, http.StatusText(status))
	default:
		return notFound("the server answered %d %s; %s", status, http.StatusText(status), hint)
	}
}
