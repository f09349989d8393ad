package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v6"

	"kiln/builder/lazyregexp"
	"kiln/builder/nuclio"
)

// Registry is what a Builder needs of image registries. Implementations are safe
// for concurrent use; their errors are of this package's *Error.
type Registry interface {
	// With returns the registries as they are for who may use the named credentials
	// (Plan.RegistrySecret) before the configured ones; "" names none. Operations with
	// a name that nobody knows fail.
	With(secret string) Registry
	// Resolve returns the image that ref names for the platform (os/arch[/variant]).
	Resolve(ctx context.Context, ref, platform string) (Image, error)
	// Prepare makes sure that destination (a tag) may be pushed, and makes its
	// repository where registries do not do so by themselves. It pushes nothing.
	Prepare(ctx context.Context, destination string) error
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
	cfg    Config
	lookup Lookup
	engine Engine
	known  []*Redactor
}

// Lookup is what plans are completed with.
type Lookup struct {
	// Registry knows base images. Required.
	Registry Registry
	// Sources fetches code. Nil: requests with a source are refused.
	Sources Sources
	// Secrets knows the secrets of projects. Nil: projects have none.
	Secrets SecretStore
}

// New returns a Builder. What known hides, now or later, credentials for example, is
// kept out of logs beside the secrets that a plan brings.
func New(cfg Config, lookup Lookup, engine Engine, known ...*Redactor) (*Builder, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("builder configuration: %w", err)
	}
	if lookup.Registry == nil || engine == nil {
		return nil, errors.New("builder needs a registry and an engine")
	}
	return &Builder{cfg: cfg, lookup: lookup, engine: engine, known: slices.Clone(known)}, nil
}

// EngineName is the wire name of the engine.
func (b *Builder) EngineName() string { return b.engine.Name() }

var digestPattern = lazyregexp.New(`^sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})$`)

// Plan pins base image and source, and returns the plan.
func (b *Builder) Plan(ctx context.Context, r Request) (Plan, error) {
	return b.lookup.pin(ctx, b.cfg, r)
}

// Pin is Builder.Plan for who does not build.
func Pin(ctx context.Context, cfg Config, lookup Lookup, r Request) (Plan, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return Plan{}, fmt.Errorf("builder configuration: %w", err)
	}
	return lookup.pin(ctx, cfg, r)
}

func (l Lookup) pin(ctx context.Context, cfg Config, r Request) (Plan, error) {
	f := found{base: Image{Ref: r.Base}, source: r.Source}
	var err error
	if f.secrets, err = l.projectSecrets(ctx, r); err != nil {
		return Plan{}, err
	}
	draft, err := newPlan(cfg, r, f)
	if err != nil {
		return Plan{}, err
	}
	if r.Base != Scratch {
		if f.base, err = l.base(ctx, r, draft.Platform); err != nil {
			return Plan{}, err
		}
	}
	if r.Source != nil {
		if f.source, err = l.source(ctx, *r.Source, draft.SourceEnv()); err != nil {
			return Plan{}, err
		}
	}
	return newPlan(cfg, r, f)
}

func (l Lookup) projectSecrets(ctx context.Context, r Request) (map[string]string, error) {
	if l.Secrets == nil {
		return visible(r, nil)
	}
	all, err := l.Secrets.Secrets(ctx, r.Project)
	if err != nil {
		return nil, err
	}
	return visible(r, all)
}

// Nuclio completes the configuration of a request that Nuclio fulfils with the
// credentials among the project's secrets.
func (l Lookup) Nuclio(ctx context.Context, r Request) (nuclio.Function, error) {
	secrets, err := l.projectSecrets(ctx, r)
	if err != nil {
		return nuclio.Function{}, err
	}
	f, err := r.Nuclio.Function(secrets)
	if err != nil {
		return nuclio.Function{}, &Error{Kind: KindInvalidRequest, Op: "making Nuclio's configuration", Err: err}
	}
	return f, nil
}

func (l Lookup) base(ctx context.Context, r Request, platform string) (Image, error) {
	base, err := l.Registry.With(r.RegistrySecret).Resolve(ctx, r.Base, platform)
	if err != nil {
		return Image{}, err
	}
	if !digestPattern.MatchString(base.Digest) {
		return Image{}, Errorf(KindUnavailable, "resolving base image "+r.Base, "the registry answered with digest %q", base.Digest)
	}
	base.Ref = r.Base
	return base, nil
}

func (l Lookup) source(ctx context.Context, s Source, env map[string]string) (*Source, error) {
	const op = "pinning the source"
	if l.Sources == nil {
		return nil, Errorf(KindInvalidRequest, op, "this worker fetches no sources")
	}
	version, err := l.Sources.Pin(ctx, s.URL, env)
	if err != nil {
		return nil, err
	}
	if version == "" {
		return nil, Errorf(KindUnavailable, op, "nobody knows its version")
	}
	s.Version = version
	return &s, nil
}

// Build makes sure that the image may be pushed, runs the plan and returns once the
// image was read back from the registry.
// Secrets are redacted from what reaches logs; a writer that fails does not fail the
// build. The plan's timeout holds even for an engine that ignores it. Canceled, it
// returns when the engine has cleaned up; one that does not within a minute is left
// behind, its output cut off.
func (b *Builder) Build(ctx context.Context, p Plan, logs io.Writer) (Result, error) {
	out := b.Redactor(p).Writer(logs)
	defer out.Close()
	timeout := p.Limits.Timeout
	if timeout <= 0 {
		timeout = b.cfg.Timeout
	}
	run, cancel := context.WithTimeoutCause(ctx, timeout, Errorf(KindTimeout, "building", "it took longer than the limit of %s", timeout))
	defer cancel()
	began := time.Now()
	result, err := b.run(run, p, out)
	result.Duration = time.Since(began)
	if err != nil {
		if late, ok := errors.AsType[*Error](context.Cause(run)); ok && late.Kind == KindTimeout {
			err = late
		}
		return result, err
	}
	return result, b.readBack(ctx, p, result.Digest)
}

// images is the registry as it is for the plan.
func (b *Builder) images(p Plan) Registry { return b.lookup.Registry.With(p.RegistrySecret) }

// stopGrace is how long an engine may take to clean up after a cancel.
const stopGrace = time.Minute

// run bounds the engine: it may be slow to stop, but not forever.
func (b *Builder) run(ctx context.Context, p Plan, out io.Writer) (Result, error) {
	if err := b.prepare(ctx, p); err != nil {
		return Result{}, err
	}
	type answer struct {
		result Result
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		result, err := b.engine.Run(ctx, p, out)
		answers <- answer{result, err}
	}()
	select {
	case a := <-answers:
		return a.result, a.err
	case <-ctx.Done():
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case a := <-answers:
		return a.result, a.err
	case <-grace.C:
		cause := context.Cause(ctx)
		return Result{}, Errorf(kindOfCause(cause), "stopping the build", "engine %s did not stop within %s: %w", b.engine.Name(), stopGrace, cause)
	}
}

func (b *Builder) prepare(ctx context.Context, p Plan) error {
	err := b.images(p).Prepare(ctx, p.Destination)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return &Error{Kind: kindOfCause(cause), Op: "preparing the push", Err: errors.Join(cause, err)}
	}
	return err
}

// kindOfCause says what the end of a context means for a build.
func kindOfCause(cause error) Kind {
	switch {
	case errors.Is(cause, ErrShutdown):
		return KindInterrupted
	case errors.Is(cause, ErrLeaseLost):
		return KindLeaseLost
	case errors.Is(cause, context.DeadlineExceeded):
		return KindTimeout
	}
	if e, ok := errors.AsType[*Error](cause); ok {
		return e.Kind
	}
	return KindCanceled
}

// readBackFor is how long a fresh image may take to become readable: some
// registries are not strongly consistent.
const readBackFor = 10 * time.Second

// readBack checks that the image is where the engine says that it pushed it.
func (b *Builder) readBack(ctx context.Context, p Plan, digest string) error {
	const op = "reading back the pushed image"
	if !digestPattern.MatchString(digest) {
		return Errorf(KindUnavailable, op, "engine %s named %q as its digest", b.engine.Name(), digest)
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 100 * time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := b.images(p).Verify(ctx, b.ImageRef(p, digest))
		if err != nil && !errors.Is(err, ErrImageMissing) && KindOf(err) != KindUnavailable {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(readBackFor))
	if err == nil {
		return nil
	}
	if failed := backoff.AsRetryError(err); failed != nil {
		err = failed.LastErr
	}
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Kind: kindOfCause(cause), Op: op, Err: errors.Join(cause, err)}
	}
	kind := KindOf(err)
	if errors.Is(err, ErrImageMissing) {
		kind = KindUnavailable
	}
	return &Error{Kind: kind, Op: op, Err: err}
}

// Verify checks that "repository@digest" is still in its registry, for who may use the
// plan's credentials; the error matches ErrImageMissing when it is not.
func (b *Builder) Verify(ctx context.Context, p Plan, imageRef string) error {
	return b.images(p).Verify(ctx, imageRef)
}

// Tag makes the plan's target name the image "repository@digest".
func (b *Builder) Tag(ctx context.Context, p Plan, imageRef string) error {
	return b.images(p).Tag(ctx, imageRef, p.Target)
}

// ImageRef returns "repository@digest" for an image that the plan pushed.
func (b *Builder) ImageRef(p Plan, digest string) string {
	return repository(p.Destination) + "@" + digest
}

// Nuclio is Lookup.Nuclio, with what keeps the function's secrets, and those that the
// Builder was made with, out of text.
func (b *Builder) Nuclio(ctx context.Context, r Request) (nuclio.Function, *Redactor, error) {
	f, err := b.lookup.Nuclio(ctx, r)
	if err != nil {
		return f, nil, err
	}
	return f, b.redactor(f.Secrets), nil
}

// Timeout is how long the request may take.
func (b *Builder) Timeout(r Request) time.Duration { return cmp.Or(r.Timeout, b.cfg.Timeout) }

// Redactor keeps the plan's secrets, and what the Builder was made with, out of text.
func (b *Builder) Redactor(p Plan) *Redactor {
	return b.redactor(p.SecretValues())
}

func (b *Builder) redactor(values []string) *Redactor {
	r := NewRedactor(values...)
	r.others = b.known
	return r
}
