package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// Engine runs builds in containers on this machine. Safe for concurrent use.
type Engine struct {
	cfg     Config
	state   *stateDir
	runtime ociRuntime
	cgroups cgroups
	// executor is the absolute path of the executor.
	executor string
	// mountPoint is an existing folder that build roots are mounted on, each in a
	// mount namespace of its own.
	mountPoint string
	// record, when set, gets what a container writes, as it writes it, and its exit
	// code: the test data of builder/kaniko is made so.
	record *recorder

	mu      sync.Mutex
	running map[string]chan struct{}
	slots   map[uint32]bool
	tmpfs   int64
	closed  bool
	runs    sync.WaitGroup
}

var _ builder.Engine = (*Engine)(nil)

// New returns an Engine, after it took cfg.StateDir for itself and removed what an
// earlier process left in it. When the machine lacks something, the error lists all
// that is missing and how to get it. ctx bounds the sweep.
//
// This process becomes the one that Linux gives orphaned descendants to.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("sandbox configuration: %w", err)
	}
	found, err := check(cfg)
	if err != nil {
		return nil, err
	}
	state, err := openState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, state: state, runtime: found.runtime, executor: found.executor, running: make(map[string]chan struct{}), slots: make(map[uint32]bool),
	}
	e.runtime.root = filepath.Join(state.path, "runtime")
	e.cgroups = cgroups{mounts: found.cgroups, path: filepath.Join(cfg.CgroupParent, state.mark)}
	// Containers outlive the runtime's command; their end is told to this process.
	if err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err == nil {
		e.mountPoint, err = mountPoint(state.path)
	}
	if err == nil {
		err = e.sweep(ctx)
	}
	if err != nil {
		_ = state.close()
		return nil, fmt.Errorf("prepare state directory %s: %w", cfg.StateDir, err)
	}
	return e, nil
}

// recorder holds the raw output of one run.
type recorder struct {
	raw  bytes.Buffer
	code int
}

// Name is "sandbox".
func (*Engine) Name() string { return "sandbox" }

// Close waits for runs in progress and gives StateDir back. Run must not be called
// after it.
func (e *Engine) Close() error {
	e.mu.Lock()
	closed := e.closed
	e.closed = true
	e.mu.Unlock()
	if closed {
		return nil
	}
	e.runs.Wait()
	e.cgroups.removeParent()
	return e.state.close()
}

var buildID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Run implements builder.Engine. A second Run of the same build and attempt waits
// for the first and then runs again.
func (e *Engine) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	if !buildID.MatchString(plan.BuildID) {
		return builder.Result{}, builder.Errorf(builder.KindInvalidRequest, "starting the build", "build id %q is not 64 hex digits", plan.BuildID)
	}
	if err := kaniko.Check(plan); err != nil {
		return builder.Result{}, err
	}
	name := fmt.Sprintf("kiln-%s-%d", plan.BuildID[:16], plan.Attempt)
	slot, release, err := e.claim(ctx, name)
	if err != nil {
		return builder.Result{}, err
	}
	defer release()
	plan.Limits = e.cfg.limits(plan.Limits)
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, plan.Limits.Timeout, fmt.Errorf("it took longer than the limit of %s", plan.Limits.Timeout))
	defer cancel()

	b := &build{engine: e, plan: plan, logs: logs, name: name, firstID: e.cfg.SubUIDBase + slot*mapped}
	digest, err := b.run(ctx)
	return builder.Result{Digest: digest, Duration: time.Since(began)}, err
}

// claim makes this the only run of that name and takes the lowest free slot, which
// is a range of user ids.
func (e *Engine) claim(ctx context.Context, name string) (slot uint32, release func(), err error) {
	mine := make(chan struct{})
	for {
		e.mu.Lock()
		if e.closed {
			e.mu.Unlock()
			return 0, nil, builder.Errorf(builder.KindInterrupted, "starting the build", "the engine is closed")
		}
		other, busy := e.running[name]
		if !busy {
			break
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return 0, nil, canceled(ctx)
		}
	}
	defer e.mu.Unlock()
	e.running[name] = mine
	for e.slots[slot] {
		slot++
	}
	e.slots[slot] = true
	e.runs.Add(1)
	return slot, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.running, name)
		delete(e.slots, slot)
		close(mine)
		e.runs.Done()
	}, nil
}

// canceled is the error of a run whose context is done.
func canceled(ctx context.Context) error {
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

// unavailable is the error of something that the machine should have done.
func unavailable(op string, err error) error {
	return &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
}

// mountPoint returns an existing folder that hides nothing of what builds need.
func mountPoint(state string) (string, error) {
	for _, dir := range []string{"/mnt", "/media", "/srv", "/opt", "/home"} {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if rel, err := filepath.Rel(dir, state); err == nil && !filepath.IsLocal(rel) {
			return dir, nil
		}
	}
	return "", errors.New("none of /mnt, /media, /srv, /opt and /home is a folder that build roots can be mounted on")
}
