package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// maxCopies bounds how many images are copied at the same time.
const maxCopies = 4

// Tag makes target name the image "repository@digest". In the same repository that
// is one manifest; else the image is copied, by mounting its layers where both
// repositories are in one registry. Repeating it is harmless. Errors are of kind
// push_denied, pull_denied, invalid_request and unavailable; one matches
// builder.ErrImageMissing when the image is not there.
func (r *Registry) Tag(ctx context.Context, imageRef, target string) error {
	op := "tagging " + target
	source, err := r.parseDigest(op, imageRef)
	if err != nil {
		return err
	}
	parsed, err := r.parse(op, target)
	if err != nil {
		return err
	}
	tag, ok := parsed.(name.Tag)
	if !ok {
		return builder.Errorf(builder.KindInvalidRequest, op, "it is not a tag")
	}
	timeout := r.cfg.Timeout
	put := r.put
	if source.Context().Name() != tag.Context().Name() {
		timeout, put = r.cfg.CopyTimeout, r.copyImage
	}
	err = r.do(ctx, timeout, func(ctx context.Context, open sessions) error {
		to, err := open(tag.RegistryStr())
		if err != nil {
			return err
		}
		// Asking is cheaper than writing, and a reused image mostly has its tag.
		if at, err := to.puller.Head(ctx, tag); err == nil && at.Digest.String() == source.Identifier() {
			return nil
		}
		from, err := open(source.RegistryStr())
		if err != nil {
			return err
		}
		desc, err := get(ctx, from, source)
		if err != nil {
			return r.sourceError("reading "+imageRef, err)
		}
		return put(ctx, to, desc, tag)
	})
	if err != nil {
		return r.pushError(op, err)
	}
	return nil
}

// sourceError classifies an error of reading what is to be tagged.
func (r *Registry) sourceError(op string, err error) error {
	if isMissing(err) {
		return r.fail(builder.KindUnavailable, op, errors.Join(builder.ErrImageMissing, err))
	}
	return r.pullError(op, err)
}

// put stores the manifest under the tag. Its parts are in the repository.
func (r *Registry) put(ctx context.Context, s *session, desc *remote.Descriptor, tag name.Tag) error {
	return s.pusher.Put(ctx, tag, desc)
}

// copyImage stores image or index with everything that belongs to it. It uses no
// session for pushing: that would remember blobs, which may be collected meanwhile.
func (r *Registry) copyImage(ctx context.Context, s *session, desc *remote.Descriptor, tag name.Tag) error {
	select {
	case r.copies <- struct{}{}:
		defer func() { <-r.copies }()
	case <-ctx.Done():
		return fmt.Errorf("wait for other copies: %w", ctx.Err())
	}
	if err := r.create(ctx, tag); err != nil && !errors.Is(err, errDenied) {
		return err
	}
	options := append(slices.Clip(s.options), remote.WithContext(ctx))
	if desc.MediaType.IsIndex() {
		index, err := desc.ImageIndex()
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		return remote.WriteIndex(tag, index, options...)
	}
	img, err := desc.Image()
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	return remote.Write(tag, img, options...)
}
