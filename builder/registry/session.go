package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// sessionAge is how long a session's credentials and certificates are used before
// they are read anew.
const sessionAge = 5 * time.Minute

// sessionKey is what a session is for.
type sessionKey struct{ host, secret string }

// session remembers how to talk to one registry as one user: which scheme it speaks,
// and the authorization for each repository.
type session struct {
	puller    *remote.Puller
	pusher    *remote.Pusher
	auth      authn.Authenticator
	transport *hostTransport
	options   []remote.Option
	born      time.Time
	// pushed are the repositories that may be pushed to: what the registry said once is
	// not asked before every build. A push that is refused all the same says so itself.
	pushed sync.Map
}

func (s *session) close() { s.transport.close() }

// session returns the current session with a host; refused is one that must not be
// used again.
func (r *Registry) session(ctx context.Context, host string, refused *session) (*session, error) {
	key := sessionKey{host, r.secret}
	r.mu.Lock()
	s := r.sessions[key]
	r.mu.Unlock()
	if s != nil && s != refused && time.Since(s.born) < sessionAge {
		return s, nil
	}
	// Not under the lock: credentials may have to be asked for. Of two that are made
	// at the same time the later one stays.
	s, err := r.newSession(ctx, host)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, old := range r.sessions {
		if time.Since(old.born) >= sessionAge {
			old.close()
			delete(r.sessions, k)
		}
	}
	r.sessions[key] = s
	return s, nil
}

func (r *Registry) newSession(ctx context.Context, host string) (*session, error) {
	login, err := r.login(ctx, host)
	if err != nil {
		return nil, err
	}
	t, err := r.newTransport(host)
	if err != nil {
		return nil, err
	}
	s := &session{transport: t, auth: authenticator(login), born: time.Now()}
	s.options = options(s.auth, t)
	if s.puller, err = remote.NewPuller(s.options...); err != nil {
		return nil, fmt.Errorf("prepare pulling: %w", err)
	}
	if s.pusher, err = remote.NewPusher(s.options...); err != nil {
		return nil, fmt.Errorf("prepare pushing: %w", err)
	}
	return s, nil
}

func authenticator(l builder.Login) authn.Authenticator {
	if l == (builder.Login{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken,
	})
}

// options of the client. Flakes are retried twice within half a second; what lasts
// longer is up to the caller.
func options(auth authn.Authenticator, t http.RoundTripper) []remote.Option {
	return []remote.Option{
		remote.WithAuth(auth),
		remote.WithTransport(t),
		remote.WithUserAgent("kiln"),
		remote.WithRetryBackoff(flakes()),
		// Not 429: asking at once again makes it worse.
		remote.WithRetryStatusCodes(http.StatusRequestTimeout, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout),
	}
}

func flakes() remote.Backoff {
	return remote.Backoff{Duration: 100 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}
}

// sessions gives an operation its session with a host.
type sessions func(host string) (*session, error)

// do runs an operation. One that is denied in a session of before is repeated once in
// new ones, since credentials may have been rotated; so is one that failed because another operation
// was canceled while both waited for the same authorization.
func (r *Registry) do(ctx context.Context, timeout time.Duration, operation func(context.Context, sessions) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the registry took longer than %s", timeout))
	defer cancel()
	began, used := time.Now(), map[string]*session{}
	err := operation(ctx, func(host string) (*session, error) {
		s, err := r.session(ctx, host, nil)
		used[host] = s
		return s, err
	})
	stale := false
	if code := status(err); code == http.StatusUnauthorized || code == http.StatusForbidden {
		for _, s := range used {
			stale = stale || s != nil && s.born.Before(began)
		}
	}
	if ctx.Err() == nil && (stale || errors.Is(err, context.Canceled)) {
		err = operation(ctx, func(host string) (*session, error) { return r.session(ctx, host, used[host]) })
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// parse reads a reference and decides about its scheme: the library takes more
// hosts for insecure than the configuration does; see hostTransport.
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
