package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// sessionAge is how long a session's credentials are used before they are read
// anew.
const sessionAge = 5 * time.Minute

// session remembers how to talk to registries: which scheme a host speaks, and the
// authorization for each repository.
type session struct {
	puller *remote.Puller
	pusher *remote.Pusher
	born   time.Time
}

// session returns the current session; refused is one that must not be used again.
func (r *Registry) session(refused *session) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.current; s != nil && s != refused && time.Since(s.born) < sessionAge {
		return s, nil
	}
	options := r.options()
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return nil, fmt.Errorf("prepare pulling: %w", err)
	}
	pusher, err := remote.NewPusher(options...)
	if err != nil {
		return nil, fmt.Errorf("prepare pushing: %w", err)
	}
	r.current = &session{puller: puller, pusher: pusher, born: time.Now()}
	return r.current, nil
}

// do runs an operation with a session. One that is denied is repeated once in a new
// session, since credentials may have been rotated; so is one that failed because
// another operation was canceled while both waited for the same authorization.
func (r *Registry) do(ctx context.Context, timeout time.Duration, operation func(context.Context, *session) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the registry took longer than %s", timeout))
	defer cancel()
	s, err := r.session(nil)
	if err != nil {
		return err
	}
	fresh := time.Since(s.born) < time.Second
	err = operation(ctx, s)
	code := status(err)
	stale := !fresh && (code == http.StatusUnauthorized || code == http.StatusForbidden)
	if ctx.Err() == nil && (stale || errors.Is(err, context.Canceled)) {
		if s, err = r.session(s); err != nil {
			return err
		}
		err = operation(ctx, s)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// options of the client. Flakes are retried twice within half a second; what lasts
// longer is up to the caller.
func (r *Registry) options() []remote.Option {
	return []remote.Option{
		remote.WithAuthFromKeychain(r.keychain),
		remote.WithTransport(strict{r.transport, r.cfg}),
		remote.WithUserAgent("kiln"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 100 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
		// Not 429: asking at once again makes it worse.
		remote.WithRetryStatusCodes(http.StatusRequestTimeout, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout),
	}
}

// parse reads a reference and decides about its scheme: the library takes more
// hosts for insecure than the configuration does; see strict.
func (r *Registry) parse(op, ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err == nil && r.cfg.IsInsecure(parsed.Context().RegistryStr()) {
		parsed, err = name.ParseReference(ref, name.Insecure)
	}
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: fmt.Errorf("read image reference: %w", err)}
	}
	return parsed, nil
}

// parseDigest reads "repository@digest".
func (r *Registry) parseDigest(op, ref string) (name.Digest, error) {
	parsed, err := r.parse(op, ref)
	if err != nil {
		return name.Digest{}, err
	}
	digest, ok := parsed.(name.Digest)
	if !ok {
		return name.Digest{}, builder.Errorf(builder.KindInvalidRequest, op, "%q names no digest", ref)
	}
	return digest, nil
}

// strict refuses plain HTTP to hosts that are not configured for it. The library
// tries it by itself for private networks (RFC 1918) and names in .local, and
// follows redirects to it.
type strict struct {
	next http.RoundTripper
	cfg  Config
}

// RoundTrip implements http.RoundTripper.
func (s strict) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !s.cfg.IsInsecure(r.URL.Host) {
		return nil, fmt.Errorf("refusing plain HTTP to %s: it is not configured as an insecure registry", r.URL.Host)
	}
	return s.next.RoundTrip(r)
}
