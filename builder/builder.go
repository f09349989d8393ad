package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v6"
)

// Registry is what a Builder needs of image registries. Implementations are safe
// for concurrent use; their errors are of this package's *Error.
type Registry interface {
	// Resolve returns the image that ref names for the platform (os/arch[/variant]).
	Resolve(ctx context.Context, ref, platform string) (Image, error)
	// Verify checks that "repository@digest" can be read. The error matches
	// ErrImageMissing when the registry answered that it does not have it.
	Verify(ctx context.Context, imageRef string) error
	// Tag makes target name the image "repository@digest", which is copied when
	// target is in another repository.
	Tag(ctx context.Context, imageRef, target string) error
}

// Builder turns requests into plans and plans into verified images. Safe for
// concurrent use.
type Builder struct {
	cfg      Config
	registry Registry
	engine   Engine
	secrets  []string
}

// New returns a Builder. Values in secrets, credentials for example, are kept out
// of logs beside those that a plan brings.
func New(cfg Config, registry Registry, engine Engine, secrets ...string) (*Builder, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("builder configuration: %w", err)
	}
	if registry == nil || engine == nil {
		return nil, errors.New("builder needs a registry and an engine")
	}
	return &Builder{cfg: cfg, registry: registry, engine: engine, secrets: secrets}, nil
}

// EngineName is the wire name of the engine.
func (b *Builder) EngineName() string { return b.engine.Name() }

// Plan pins the base image and returns the plan.
func (b *Builder) Plan(ctx context.Context, r Request) (Plan, error) {
	base := Image{Ref: r.Base}
	if r.Base != Scratch {
		platform := b.cfg.Platform
		if r.Platform != "" {
			platform = r.Platform
		}
		var err error
		if base, err = b.registry.Resolve(ctx, r.Base, platform); err != nil {
			return Plan{}, err
		}
		base.Ref = r.Base
	}
	return newPlan(b.cfg, r, base)
}

// verifyFor is how long a fresh image may take to become readable: some registries
// are not strongly consistent.
const verifyFor = 10 * time.Second

// Build runs the plan and returns once the image was read back from the registry.
// Secrets are redacted from what reaches logs. The plan's timeout holds even for an
// engine that ignores it, apart from its clean-up.
func (b *Builder) Build(ctx context.Context, p Plan, logs io.Writer) (Result, error) {
	out := b.Redactor(p).Writer(logs)
	run, cancel := context.WithTimeoutCause(ctx, p.Limits.Timeout, &Error{
		Kind: KindTimeout, Op: "building", Err: fmt.Errorf("it took longer than the limit of %s", p.Limits.Timeout),
	})
	defer cancel()
	began := time.Now()
	result, err := b.engine.Run(run, p, out)
	result.Duration = time.Since(began)
	_ = out.Close()
	if err != nil {
		if late, ok := errors.AsType[*Error](context.Cause(run)); ok && late.Kind == KindTimeout {
			return result, late
		}
		return result, err
	}
	ref := b.ImageRef(p, result.Digest)
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := b.registry.Verify(ctx, ref)
		if err != nil && !errors.Is(err, ErrImageMissing) && KindOf(err) != KindUnavailable {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(verifyFor))
	if err != nil {
		return result, &Error{Kind: KindUnavailable, Op: "reading back the pushed image", Err: err}
	}
	return result, nil
}

// Verify checks that "repository@digest" is still in its registry; the error
// matches ErrImageMissing when it is not.
func (b *Builder) Verify(ctx context.Context, imageRef string) error {
	return b.registry.Verify(ctx, imageRef)
}

// Tag makes target name the image "repository@digest".
func (b *Builder) Tag(ctx context.Context, imageRef, target string) error {
	return b.registry.Tag(ctx, imageRef, target)
}

// ImageRef returns "repository@digest" for an image that the plan pushed.
func (b *Builder) ImageRef(p Plan, digest string) string {
	return repository(p.Destination) + "@" + digest
}

// Redactor keeps the plan's secrets, and those that the Builder was made with, out
// of text.
func (b *Builder) Redactor(p Plan) *Redactor {
	return NewRedactor(append(p.SecretValues(), b.secrets...)...)
}
