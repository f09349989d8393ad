package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"kiln/builder"
)

// Prepare checks that destination (a tag) may be pushed, by beginning an upload and
// giving it up, once for a repository as long as the credentials are used. Where repositories have to be made before (ECR) it makes the
// destination's, with the settings that the account has for new ones. Errors are of
// kind push_denied, invalid_request and unavailable.
func (r *Registry) Prepare(ctx context.Context, destination string) error {
	op := "preparing to push " + destination
	parsed, err := r.parse(op, destination)
	if err != nil {
		return err
	}
	tag, ok := parsed.(name.Tag)
	if !ok {
		return builder.Errorf(builder.KindInvalidRequest, op, "it is not a tag")
	}
	err = r.do(ctx, r.cfg.Timeout, func(ctx context.Context, open sessions) error {
		made := r.create(ctx, tag)
		if made != nil && !errors.Is(made, errDenied) {
			return made
		}
		s, err := open(tag.RegistryStr())
		if err == nil {
			err = s.mayPush(ctx, tag)
		}
		if err != nil && made != nil {
			// Who may push may not always make repositories, and this one may be there.
			return fmt.Errorf("%w (%s)", err, made.Error())
		}
		return err
	})
	if err != nil {
		return r.pushError(op, err)
	}
	return nil
}

// mayPush is as the function, but asks for a repository only until the answer is yes.
func (s *session) mayPush(ctx context.Context, tag name.Tag) error {
	repository := tag.Context().Name()
	if _, known := s.pushed.Load(repository); known {
		return nil
	}
	err := mayPush(ctx, s, tag)
	if err == nil {
		s.pushed.Store(repository, true)
	}
	return err
}

// mayPush asks the registry whether the session's user may push the tag.
func mayPush(ctx context.Context, s *session, tag name.Tag) error {
	retrying := transport.NewRetry(s.transport, transport.WithRetryBackoff(flakes()))
	return remote.CheckPushPermission(tag, fixed{s.auth}, bound{ctx, retrying})
}

// create makes the tag's repository if it is one of ECR, which has none before. The
// error matches errDenied when that is not for this account to do.
func (r *Registry) create(ctx context.Context, tag name.Tag) error {
	account, err := r.creator(ctx, tag.RegistryStr())
	if err != nil || account == nil {
		return err
	}
	if err := account.create(ctx, tag.RegistryStr(), tag.RepositoryStr()); err != nil {
		return fmt.Errorf("create repository %s: %w", tag.RepositoryStr(), err)
	}
	return nil
}

// fixed is a keychain of one login.
type fixed struct{ auth authn.Authenticator }

// Resolve implements authn.Keychain.
func (f fixed) Resolve(authn.Resource) (authn.Authenticator, error) { return f.auth, nil }

// giveUpFor is how long giving up an upload may take.
const giveUpFor = 10 * time.Second

// bound gives requests that have no context one. What gives up an upload is made after
// the check has ended, by nobody who waits.
type bound struct {
	ctx  context.Context //nolint:containedctx // the library's function takes none
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bound) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodDelete {
		return b.next.RoundTrip(r.WithContext(b.ctx))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), giveUpFor)
	defer cancel() // nobody reads the answer
	return b.next.RoundTrip(r.WithContext(ctx))
}
