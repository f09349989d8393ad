package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/builder"
)

// Resolve returns digest and compressed size of the image that ref (a tag or a
// digest) names for the platform (os/arch[/variant]). The registry's mirrors are asked
// before it; each may take a part of the time. Errors are of kind base_not_found, also
// when there is no image for the platform, pull_denied, unavailable and
// invalid_request.
//
// What a digest stands for is remembered, and a tag is asked for by HEAD first: a
// registry that counts pulls counts one for each new image.
func (r *Registry) Resolve(ctx context.Context, ref, platform string) (builder.Image, error) {
	op := "resolving base image " + ref
	parsed, err := r.parse(op, ref)
	if err != nil {
		return builder.Image{}, err
	}
	want, err := v1.ParsePlatform(platform)
	if err != nil || want.OS == "" || want.Architecture == "" {
		return builder.Image{}, builder.Errorf(builder.KindInvalidRequest, op, "platform %q is not os/arch[/variant]", platform)
	}
	places, err := r.mirrorsOf(op, parsed)
	if err != nil {
		return builder.Image{}, err
	}
	places = append(places, parsed)
	var image builder.Image
	var missed []string
	deadline := time.Now().Add(r.cfg.Timeout)
	for i, place := range places {
		share := (time.Until(deadline) / time.Duration(len(places)-i)).Round(time.Millisecond)
		if image, err = r.resolveAt(ctx, share, op, place, *want); err == nil {
			image.Ref = ref
			return image, nil
		}
		if i < len(places)-1 && ctx.Err() == nil {
			missed = append(missed, fmt.Sprintf("mirror %s: %s", place.Context().RegistryStr(), r.redactor.Text(short(err.Error()))))
		}
	}
	err = r.pullError(op, err)
	if failed, ok := errors.AsType[*builder.Error](err); ok && len(missed) > 0 {
		return image, &builder.Error{Kind: failed.Kind, Op: failed.Op, Err: fmt.Errorf("%w (%s)", failed.Err, strings.Join(missed, "; "))}
	}
	return image, err
}

// mirrorsOf returns what the image is called at the mirrors of its registry.
func (r *Registry) mirrorsOf(op string, ref name.Reference) ([]name.Reference, error) {
	h, _ := r.cfg.host(ref.Context().RegistryStr())
	places := make([]name.Reference, 0, len(h.Mirrors)+1)
	for _, text := range h.Mirrors {
		m := parseMirror(text)
		var options []name.Option
		if r.cfg.IsInsecure(m.host) {
			options = append(options, name.Insecure)
		}
		host, err := name.NewRegistry(m.host, options...)
		if err != nil {
			return nil, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: fmt.Errorf("read mirror %q: %w", text, err)}
		}
		repository := host.Repo(m.path, ref.Context().RepositoryStr())
		if digest, ok := ref.(name.Digest); ok {
			places = append(places, repository.Digest(digest.DigestStr()))
		} else {
			places = append(places, repository.Tag(ref.Identifier()))
		}
	}
	return places, nil
}

func (r *Registry) resolveAt(ctx context.Context, timeout time.Duration, op string, ref name.Reference, want v1.Platform) (builder.Image, error) {
	var image builder.Image
	err := r.do(ctx, timeout, func(ctx context.Context, open sessions) error {
		s, err := open(ref.Context().RegistryStr())
		if err == nil {
			image, err = r.resolve(ctx, s, op, ref, want)
		}
		return err
	})
	if isMissing(err) {
		err = fmt.Errorf("%s has no %s in repository %s: %w",
			ref.Context().RegistryStr(), ref.Identifier(), ref.Context().RepositoryStr(), err)
	}
	return image, err
}

func (r *Registry) resolve(ctx context.Context, s *session, op string, ref name.Reference, want v1.Platform) (builder.Image, error) {
	key := resolvedKey{repository: ref.Context().Name(), platform: want.String()}
	if head, err := s.puller.Head(ctx, ref); err == nil {
		key.digest = head.Digest
		if image, ok := r.resolved.get(key); ok {
			return image, nil
		}
	}
	// The answer to GET says more about what is wrong, and what its digest is need
	// not be believed.
	desc, err := get(ctx, s, ref)
	if err != nil {
		return builder.Image{}, err
	}
	key.digest = desc.Digest
	single := !desc.MediaType.IsIndex()
	if !single {
		child, err := pick(op, desc, want)
		if err != nil {
			return builder.Image{}, err
		}
		if desc, err = get(ctx, s, ref.Context().Digest(child.String())); err != nil {
			return builder.Image{}, err
		}
	}
	if !desc.MediaType.IsImage() {
		return builder.Image{}, builder.Errorf(builder.KindBaseNotFound, op, "it is no container image but %q", short(string(desc.MediaType)))
	}
	image, err := measure(op, desc, want, single)
	if err == nil {
		r.resolved.put(key, image)
	}
	return image, err
}

// get reads a manifest. Some registries add parameters to its media type.
func get(ctx context.Context, s *session, ref name.Reference) (*remote.Descriptor, error) {
	desc, err := s.puller.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	mediaType, _, _ := strings.Cut(string(desc.MediaType), ";")
	desc.MediaType = types.MediaType(strings.TrimSpace(mediaType))
	return desc, nil
}

// pick returns the digest of the platform's image in an index.
func pick(op string, desc *remote.Descriptor, want v1.Platform) (v1.Hash, error) {
	index, err := desc.ImageIndex()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("read index: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return v1.Hash{}, builder.Errorf(builder.KindBaseNotFound, op, "its index cannot be read: %w", err)
	}
	var found *v1.Descriptor
	var others []string
	for i, child := range manifest.Manifests {
		if child.Platform == nil || !child.MediaType.IsImage() || child.Platform.OS == "unknown" {
			continue
		}
		if matches(*child.Platform, want) && (found == nil || child.Platform.Variant == want.Variant) {
			found = &manifest.Manifests[i]
		}
		others = append(others, child.Platform.String())
	}
	if found == nil {
		slices.Sort(others)
		others = slices.Compact(others)
		return v1.Hash{}, builder.Errorf(builder.KindBaseNotFound, op, "there is no image for platform %s, only for %s",
			want, short(strings.Join(others, ", ")))
	}
	return found.Digest, nil
}

// matches compares platforms. A variant that is not asked for may be any; arm64 is
// v8 when nothing else is said.
func matches(have, want v1.Platform) bool {
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return false
	}
	if want.Variant == "" || have.Variant == want.Variant {
		return true
	}
	return want.Architecture == "arm64" && want.Variant == "v8" && have.Variant == ""
}

// measure reads digest and size of an image. That a single image is for the
// platform is in its configuration only.
func measure(op string, desc *remote.Descriptor, want v1.Platform, single bool) (builder.Image, error) {
	img, err := desc.Image()
	if err != nil {
		return builder.Image{}, fmt.Errorf("read image: %w", err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return builder.Image{}, builder.Errorf(builder.KindBaseNotFound, op, "its manifest cannot be read: %w", err)
	}
	if single {
		cfg, err := img.ConfigFile()
		if err != nil {
			return builder.Image{}, fmt.Errorf("read image configuration: %w", err)
		}
		if have := cfg.Platform(); have != nil && have.Architecture != "" && !matches(*have, want) {
			return builder.Image{}, builder.Errorf(builder.KindBaseNotFound, op, "it is for platform %s, not for %s", have, want)
		}
	}
	image := builder.Image{Digest: desc.Digest.String()}
	for _, layer := range manifest.Layers {
		image.Size += layer.Size
	}
	return image, nil
}

// Verify checks that the manifest of "repository@digest" can be read. The error
// matches builder.ErrImageMissing when the registry does not have it; its kind is
// unavailable or pull_denied.
func (r *Registry) Verify(ctx context.Context, imageRef string) error {
	op := "verifying " + imageRef
	digest, err := r.parseDigest(op, imageRef)
	if err != nil {
		return err
	}
	err = r.do(ctx, r.cfg.Timeout, func(ctx context.Context, open sessions) error {
		s, err := open(digest.RegistryStr())
		if err != nil {
			return err
		}
		_, err = s.puller.Head(ctx, digest)
		if err != nil && !isMissing(err) && ctx.Err() == nil {
			// Not every registry answers HEAD well, and none says why it refuses.
			_, err = s.puller.Get(ctx, digest)
		}
		return err
	})
	if err == nil {
		return nil
	}
	if isMissing(err) {
		return r.fail(builder.KindUnavailable, op, errors.Join(builder.ErrImageMissing, err))
	}
	return r.pullError(op, err)
}
