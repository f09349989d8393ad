package kube

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kiln/builder"
	runs "kiln/builder/run"
)

// Entrypoints is what a Runner needs to know of images. Implementations are safe for
// concurrent use.
type Entrypoints interface {
	// Entrypoint returns the entrypoint and command of the image that ref
	// ("repository@sha256:…") names, with the named registry credentials first. Errors are
	// of builder's *Error.
	Entrypoint(ctx context.Context, ref, secret string) ([]string, error)
}

// RunnerConfig is that of a Runner. Of Config it takes all but what is about the build
// tool: ExecutorImage, Registries and CredentialHelpers. The image ContextImage also has
// the launcher, kiln-init, beside kilnd. TTL defaults to 24 h: how long what is kept of an
// attempt stays that nobody forgets.
type RunnerConfig struct {
	Config
	// Entrypoints knows those of images, for plans that run an image's own. Nil: such
	// plans are refused.
	Entrypoints Entrypoints
}

// Runner runs images as Kubernetes Jobs. Safe for concurrent use.
type Runner struct {
	engine      *Engine
	entrypoints Entrypoints
}

var _ runs.Runner = (*Runner)(nil)

// NewRunner returns a Runner, after it has listed the Jobs that there are. ctx bounds the
// listing.
func NewRunner(ctx context.Context, client kubernetes.Interface, cfg RunnerConfig) (*Runner, error) {
	return newRunner(ctx, client, podLogs{client: client, namespace: cfg.Namespace}, cfg)
}

func newRunner(ctx context.Context, client kubernetes.Interface, logs logStreams, cfg RunnerConfig) (*Runner, error) {
	cfg.component = "run"
	cfg.ExecutorImage = cfg.ContextImage
	setDefault(&cfg.TTL, 24*time.Hour)
	engine, err := newEngine(ctx, client, logs, cfg.Config)
	if err != nil {
		return nil, err
	}
	return &Runner{engine: engine, entrypoints: cfg.Entrypoints}, nil
}

// Name is "kube".
func (*Runner) Name() string { return "kube" }

// Close waits for calls of Run in progress and stops watching; Jobs go on. Run must not
// be called after it.
func (r *Runner) Close() error { return r.engine.Close() }

// begin counts a call, until end is called.
func (r *Runner) begin() (end func(), err error) {
	e := r.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, builder.Errorf(builder.KindInterrupted, "running", "the runner is closed")
	}
	e.runs.Add(1)
	return e.runs.Done, nil
}

var imageRef = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)

// Run implements runs.Runner. An attempt is a Job of a name that follows from it; one
// that is there is attached to.
func (r *Runner) Run(ctx context.Context, plan runs.Plan, watch runs.Watch) (runs.Result, error) {
	done, err := r.begin()
	if err != nil {
		return runs.Result{}, err
	}
	defer done()
	if err := checkIdentity(plan.RunID, plan.Attempt); err != nil {
		return runs.Result{}, err
	}
	if !imageRef.MatchString(plan.Image) {
		return runs.Result{}, builder.Errorf(builder.KindInvalidRequest, opRun, "image %.200q names no digest", plan.Image)
	}
	plan.Limits.Timeout = r.engine.cfg.limits(asBuild(plan)).Timeout
	// The limit counts from the start of the process, which is not known yet.
	limited, expire := context.WithCancelCause(ctx)
	defer expire(nil)
	x := newExecution(r, plan, watch, expire)
	defer x.stop()
	result, err := x.do(limited)
	if _, ok := errors.AsType[*builder.Error](err); err != nil && !ok {
		err = unavailable(opRun, err)
	}
	return result, err
}

const opRun = "running"

func checkIdentity(runID string, attempt int) error {
	if !buildID.MatchString(runID) || attempt < 1 || attempt > 99999 {
		return builder.Errorf(builder.KindInvalidRequest, opRun, "run id %.80q must be 64 hex digits, and attempt %d from 1 to 99999", runID, attempt)
	}
	return nil
}

// Forget implements runs.Runner.
func (r *Runner) Forget(ctx context.Context, runID string, attempt int) error {
	done, err := r.begin()
	if err != nil {
		return err
	}
	defer done()
	if err := checkIdentity(runID, attempt); err != nil {
		return err
	}
	const op = "forgetting the run"
	e, plan := r.engine, runs.Plan{RunID: runID, Attempt: attempt}
	job, err := e.api.getJob(ctx, runName(plan, e.cfg))
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return runError(ctx, op, err)
	case !sameRun(job, plan):
		return nil
	}
	if err := e.api.deleteJob(ctx, job.Name, job.UID, metav1.DeletePropagationForeground); err != nil {
		return runError(ctx, op, err)
	}
	return r.awaitForgotten(ctx, job)
}

// awaitForgotten waits until the Job is gone. It is deleted in the foreground, so that its
// Pods are gone before it; the server is asked, since the cache may miss that.
func (r *Runner) awaitForgotten(ctx context.Context, job *batchv1.Job) error {
	changes, stop := r.engine.objects.subscribe(job.Name)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now, err := r.engine.api.getJob(ctx, job.Name)
		if apierrors.IsNotFound(err) || err == nil && now.UID != job.UID {
			return nil
		}
		select {
		case <-changes:
		case <-tick.C:
		case <-ctx.Done():
			return runCanceled(ctx)
		}
	}
}

// runError is apiError in the words of runs.
func runError(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return runCanceled(ctx)
	}
	return apiError(ctx, op, err)
}

// errLimit is the cause when a process took longer than its plan allows.
var errLimit = errors.New("it took longer than its limit")

// runCanceled is the error of a call whose context is done.
func runCanceled(ctx context.Context) error {
	cause := context.Cause(ctx)
	kind := builder.KindCanceled
	switch {
	case leaves(ctx):
		kind = builder.KindInterrupted
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(cause, errLimit):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: opRun, Err: cause}
}

// sameRun reports whether the Job is the attempt's.
func sameRun(job *batchv1.Job, plan runs.Plan) bool {
	return job.Annotations[noteRun] == plan.RunID && job.Labels[labelAttempt] == strconv.Itoa(plan.Attempt)
}
