package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/builder"
)

// Script is what a Fake does for one plan. It need not care for cancellation:
// Fake turns the error of a canceled context into the right builder.Error.
type Script func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error)

// Fake is an engine that builds nothing: it runs a Script. It keeps the Engine
// contract around the script: one run per build and attempt at a time, and errors
// by the cause of a cancel. Safe for concurrent use.
type Fake struct {
	// Script is run for every plan; nil means Succeed(). It must not be changed
	// while runs are in progress.
	Script Script

	mu      sync.Mutex
	runs    int
	plans   []builder.Plan
	running map[string]chan struct{}
}

var _ builder.Engine = (*Fake)(nil)

// NewFake returns a Fake that runs the scripts in turn, one per Run; the last one
// is repeated. Without scripts every run succeeds.
func NewFake(scripts ...Script) *Fake {
	if len(scripts) == 0 {
		return &Fake{Script: Succeed()}
	}
	return &Fake{Script: Sequence(scripts...)}
}

// Name is "fake".
func (*Fake) Name() string { return "fake" }

// Runs is the number of times that Run was called.
func (f *Fake) Runs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs
}

// Plans returns the plans that Run was called with, in order.
func (f *Fake) Plans() []builder.Plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]builder.Plan(nil), f.plans...)
}

// Running is the number of scripts in progress.
func (f *Fake) Running() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}

// Run implements builder.Engine.
func (f *Fake) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	f.mu.Lock()
	f.runs++
	f.plans = append(f.plans, plan)
	script := f.Script
	f.mu.Unlock()
	if script == nil {
		script = Succeed()
	}
	release, err := f.claim(ctx, fmt.Sprintf("%s-%d", plan.BuildID, plan.Attempt))
	if err != nil {
		return builder.Result{}, err
	}
	defer release()
	began := time.Now()
	result, err := script(ctx, plan, logs)
	result.Duration = time.Since(began)
	if err == nil {
		return result, nil
	}
	if ctx.Err() != nil {
		return builder.Result{}, Canceled(ctx)
	}
	if _, ok := errors.AsType[*builder.Error](err); !ok {
		err = &builder.Error{Kind: builder.KindUnavailable, Op: "running the script", Err: err}
	}
	return builder.Result{}, err
}

// claim waits until no other run of the same build and attempt is in progress.
func (f *Fake) claim(ctx context.Context, key string) (release func(), err error) {
	mine := make(chan struct{})
	for {
		f.mu.Lock()
		other, busy := f.running[key]
		if !busy {
			if f.running == nil {
				f.running = make(map[string]chan struct{})
			}
			f.running[key] = mine
		}
		f.mu.Unlock()
		if !busy {
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.running, key)
				close(mine)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, Canceled(ctx)
		}
	}
}

// Canceled is the error that the Engine contract asks for when ctx is done.
func Canceled(ctx context.Context) error {
	cause := context.Cause(ctx)
	kind := builder.KindCanceled
	switch {
	case errors.Is(cause, builder.ErrShutdown):
		kind = builder.KindInterrupted
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: "building", Err: cause}
}

// Sequence runs the scripts in turn, one per run; the last one is repeated.
func Sequence(scripts ...Script) Script {
	var mu sync.Mutex
	next := 0
	return func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
		mu.Lock()
		script := scripts[min(next, len(scripts)-1)]
		next++
		mu.Unlock()
		return script(ctx, plan, logs)
	}
}

// Succeed pushes a tiny image, made of the plan, to plan.Destination, so that it can
// be verified and tagged like a real one. Before that it logs the lines.
func Succeed(lines ...string) Script {
	return func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
		emit(logs, lines)
		digest, err := push(ctx, plan)
		return builder.Result{Digest: digest}, err
	}
}

// Fail logs the lines and returns an error of the kind.
func Fail(kind builder.Kind, message string, lines ...string) Script {
	return func(_ context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
		emit(logs, lines)
		return builder.Result{}, &builder.Error{Kind: kind, Op: "building", Err: errors.New(message)}
	}
}

// Block logs the lines and waits until the run is canceled.
func Block(lines ...string) Script {
	return func(ctx context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
		emit(logs, lines)
		<-ctx.Done()
		return builder.Result{}, Canceled(ctx)
	}
}

// BlockUntil waits for release or a cancel, whichever comes first, and goes on with
// next in the first case.
func BlockUntil(release <-chan struct{}, next Script) Script {
	return func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
		select {
		case <-release:
			return next(ctx, plan, logs)
		case <-ctx.Done():
			return builder.Result{}, Canceled(ctx)
		}
	}
}

// Crash fails the way an engine does that lost its build: with an error that nobody
// classified, after the push if pushed is set.
func Crash(pushed bool) Script {
	return func(ctx context.Context, plan builder.Plan, _ io.Writer) (builder.Result, error) {
		if pushed {
			if _, err := push(ctx, plan); err != nil {
				return builder.Result{}, err
			}
		}
		return builder.Result{}, errors.New("the engine crashed")
	}
}

// Lie reports a digest that was never pushed.
func Lie() Script {
	return func(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
		return builder.Result{Digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}, nil
	}
}

func emit(logs io.Writer, lines []string) {
	for _, line := range lines {
		// A log that cannot be written does not fail a build.
		_, _ = io.WriteString(logs, line+"\n")
	}
}

// push writes an image whose only layer is the plan's Dockerfile.
func push(ctx context.Context, plan builder.Plan) (string, error) {
	ref, err := name.ParseReference(plan.Destination)
	if err != nil {
		return "", fmt.Errorf("parse destination %q: %w", plan.Destination, err)
	}
	layer := static.NewLayer([]byte(plan.BuildID+"\n"+plan.Dockerfile), types.DockerLayer)
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return "", fmt.Errorf("make image: %w", err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return "", fmt.Errorf("make image config: %w", err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("digest of image: %w", err)
	}
	return digest.String(), nil
}
