package registry

import (
	"context"

	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder"
)

// MayPush asks whether target (a tag) may be pushed with the credentials of secret ("":
// only the configured ones), by beginning an upload and giving it up. Other than Prepare
// it makes no repository. Errors are of kind push_denied, invalid_request and
// unavailable.
func (r *Registry) MayPush(ctx context.Context, secret, target string) error {
	op := "asking to push " + target
	parsed, err := r.parse(op, target)
	if err != nil {
		return err
	}
	tag, ok := parsed.(name.Tag)
	if !ok {
		return builder.Errorf(builder.KindInvalidRequest, op, "it is not a tag")
	}
	as := &Registry{shared: r.shared, secret: secret}
	err = as.do(ctx, r.cfg.Timeout, func(ctx context.Context, open sessions) error {
		s, err := open(tag.RegistryStr())
		if err != nil {
			return err
		}
		return mayPush(ctx, s, tag)
	})
	if err != nil {
		return as.pushError(op, err)
	}
	return nil
}
