package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// Engine runs builds as Kubernetes Jobs. Safe for concurrent use.
type Engine struct {
	cfg     Config
	api     cluster
	logs    logStreams
	objects *objects

	// end stops the informers and the sweep.
	end     context.CancelFunc
	sweeper sync.WaitGroup

	mu      sync.Mutex
	running map[string]chan struct{}
	closed  bool
	runs    sync.WaitGroup
}

var _ builder.Engine = (*Engine)(nil)

// New returns an Engine, after it has listed the Jobs that there are. ctx bounds the
// listing.
func New(ctx context.Context, client kubernetes.Interface, cfg Config) (*Engine, error) {
	return newEngine(ctx, client, podLogs{client: client, namespace: cfg.Namespace}, cfg)
}

func newEngine(ctx context.Context, client kubernetes.Interface, logs logStreams, cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("kubernetes configuration: %w", err)
	}
	objects, err := newObjects(client, cfg)
	if err != nil {
		return nil, fmt.Errorf("watch namespace %s: %w", cfg.Namespace, err)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	e := &Engine{
		cfg: cfg, api: cluster{client: client, namespace: cfg.Namespace, retryFor: cfg.RetryFor}, logs: logs, objects: objects,
		end: end, running: make(map[string]chan struct{}),
	}
	if err := objects.start(ctx, life); err != nil {
		end()
		objects.stop()
		return nil, fmt.Errorf("watch namespace %s: %w", cfg.Namespace, err)
	}
	e.sweeper.Go(func() { e.sweepForever(life) })
	return e, nil
}

// Name is "kube".
func (*Engine) Name() string { return "kube" }

// Close waits for runs in progress and stops watching. Run must not be called after
// it.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.runs.Wait()
	e.end()
	e.sweeper.Wait()
	e.objects.stop()
	return nil
}

var buildID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Run implements builder.Engine. It joins a Job that any worker made for the same
// content and destination, in whatever attempt. When ctx is canceled with cause
// ErrLeaseLost the Job is left to its new owner and the error is of KindLeaseLost.
func (e *Engine) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	if !buildID.MatchString(plan.BuildID) {
		return builder.Result{}, builder.Errorf(builder.KindInvalidRequest, "starting the build", "build id %q is not 64 hex digits", plan.BuildID)
	}
	if err := kaniko.Check(plan); err != nil {
		return builder.Result{}, err
	}
	release, err := e.claim(ctx, plan.BuildID)
	if err != nil {
		return builder.Result{}, err
	}
	defer release()
	plan.Limits.Timeout = e.cfg.limits(plan).Timeout
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, plan.Limits.Timeout, fmt.Errorf("it took longer than the limit of %s", plan.Limits.Timeout))
	defer cancel()
	r := newRun(e, plan, logs)
	digest, err := r.do(ctx)
	return builder.Result{Digest: digest, Duration: time.Since(began)}, err
}

// claim makes this the only run of that build in this process.
func (e *Engine) claim(ctx context.Context, build string) (release func(), err error) {
	mine := make(chan struct{})
	for {
		if ctx.Err() != nil {
			return nil, canceled(ctx)
		}
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return nil, builder.Errorf(builder.KindInterrupted, "starting the build", "the engine is closed")
		}
		other, busy := e.running[build]
		if !busy {
			e.running[build] = mine
			e.runs.Add(1)
			e.mu.Unlock()
			return func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				delete(e.running, build)
				close(mine)
				e.runs.Done()
			}, nil
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
		}
	}
}

// leaves reports whether a canceled run leaves its Job to another worker.
func leaves(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return errors.Is(cause, builder.ErrShutdown) || errors.Is(cause, builder.ErrLeaseLost)
}
