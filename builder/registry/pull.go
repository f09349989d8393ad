package registry

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder"
)

// Image returns the image that ref ("repository@sha256:…") names, with the named
// credentials first; of an index that for this machine. The registry's mirrors are asked
// before it. Its layers are read within ctx, when they are asked for, and compared with
// their digests. Errors are of kind base_not_found, pull_denied, unavailable and
// invalid_request.
func (r *Registry) Image(ctx context.Context, ref, secret string) (v1.Image, error) {
	op := "pulling " + ref
	parsed, err := r.parseDigest(op, ref)
	if err != nil {
		return nil, err
	}
	places, err := r.mirrorsOf(op, parsed)
	if err != nil {
		return nil, err
	}
	named := &Registry{shared: r.shared, secret: secret}
	var image v1.Image
	for _, place := range append(places, parsed) {
		if image, err = named.imageAt(ctx, op, place); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, r.pullError(op, err)
	}
	return image, nil
}

// imageAt reads the image's manifest. It does not go through do: the layers are read
// after it returns, by the same context.
func (r *Registry) imageAt(ctx context.Context, op string, ref name.Reference) (v1.Image, error) {
	began, host := time.Now(), ref.Context().RegistryStr()
	s, err := r.session(ctx, host, nil)
	if err != nil {
		return nil, err
	}
	desc, err := get(ctx, s, ref)
	if code := status(err); (code == http.StatusUnauthorized || code == http.StatusForbidden) && s.born.Before(began) {
		// Credentials may have been rotated.
		if s, err = r.session(ctx, host, s); err != nil {
			return nil, err
		}
		desc, err = get(ctx, s, ref)
	}
	if err != nil {
		return nil, err
	}
	if desc.MediaType.IsIndex() {
		child, err := pick(op, desc, v1.Platform{OS: "linux", Architecture: runtime.GOARCH})
		if err != nil {
			return nil, err
		}
		if desc, err = get(ctx, s, ref.Context().Digest(child.String())); err != nil {
			return nil, err
		}
	}
	if !desc.MediaType.IsImage() {
		return nil, builder.Errorf(builder.KindBaseNotFound, op, "it is no container image but %q", short(string(desc.MediaType)))
	}
	return desc.Image()
}

// Entrypoint returns the entrypoint and command of the image that ref names, as Image
// does it. Errors are those of Image.
func (r *Registry) Entrypoint(ctx context.Context, ref, secret string) ([]string, error) {
	image, err := r.Image(ctx, ref, secret)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, r.pullError("reading the configuration of "+ref, err)
	}
	return slices.Concat(config.Config.Entrypoint, config.Config.Cmd), nil
}
