package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/run"
)

// Runner runs images in containers on this machine. A process goes on when its Runner,
// or the whole program, ends; whoever asks for it next attaches to it. Safe for
// concurrent use.
type Runner struct {
	cfg     RunnerConfig
	state   *stateDir
	runtime ociRuntime
	cgroups cgroups
	images  imageCache
	// launcher is the absolute path of kiln-init.
	launcher   string
	mountPoint string

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

var _ run.Runner = (*Runner)(nil)

// NewRunner returns a Runner, after it removed what is left in cfg.StateDir of attempts
// that ended long ago. When the machine lacks something, the error lists all that is
// missing and how to get it. ctx bounds the sweep.
//
// This process becomes the one that Linux gives orphaned descendants to.
func NewRunner(ctx context.Context, cfg RunnerConfig) (*Runner, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("sandbox configuration: %w", err)
	}
	found, err := checkRunner(cfg)
	if err != nil {
		return nil, err
	}
	state, err := openRuns(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	r := &Runner{cfg: cfg, state: state, runtime: found.runtime, launcher: found.launcher}
	r.runtime.root = filepath.Join(state.path, "runtime")
	r.cgroups = cgroups{mounts: found.cgroups, path: filepath.Join(cfg.CgroupParent, state.mark)}
	if err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err == nil {
		r.mountPoint, err = mountPoint(state.path)
	}
	if err == nil {
		r.images, err = openImages(state.root, cfg, r.usedImages)
	}
	if err != nil {
		_ = state.root.Close()
		return nil, fmt.Errorf("prepare state directory %s: %w", cfg.StateDir, err)
	}
	r.sweep(ctx, time.Now())
	return r, nil
}

// openRuns opens a state directory that others may have open too.
func openRuns(dir string) (*stateDir, error) {
	s, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"runs", "images"} {
		if err := s.root.MkdirAll(name, 0o700); err != nil {
			_ = s.root.Close()
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	return s, nil
}

func openImages(state *os.Root, cfg RunnerConfig, used func() map[string]bool) (imageCache, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return imageCache{}, fmt.Errorf("read boot id: %w", err)
	}
	root, err := state.OpenRoot("images")
	if err != nil {
		return imageCache{}, err
	}
	return imageCache{
		root: root, boot: string(boot[:min(8, len(boot))]), owner: int(cfg.SubUIDBase), most: cfg.ImageSize, total: cfg.CacheSize, used: used,
	}, nil
}

// Name is "sandbox".
func (*Runner) Name() string { return "sandbox" }

// Close waits for calls of Run in progress; processes go on. Run must not be called
// after it.
func (r *Runner) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return nil
	}
	r.calls.Wait()
	return errors.Join(r.images.root.Close(), r.state.root.Close())
}

// begin counts a call, until end is called.
func (r *Runner) begin() (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, builder.Errorf(builder.KindInterrupted, opRun, "the runner is closed")
	}
	r.calls.Add(1)
	return r.calls.Done, nil
}

var (
	runID    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	imageRef = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
)

func (r *Runner) attempt(id string, number int) (attempt, error) {
	if !runID.MatchString(id) || number < 1 {
		return attempt{}, builder.Errorf(builder.KindInvalidRequest, opRun, "run id %.80q must be 64 hex digits, and attempt %d more than zero", id, number)
	}
	name := fmt.Sprintf("%s-%d", id, number)
	return attempt{runner: r, name: name, folder: path.Join("runs", name)}, nil
}

// Run implements run.Runner.
func (r *Runner) Run(ctx context.Context, plan run.Plan, watch run.Watch) (run.Result, error) {
	done, err := r.begin()
	if err != nil {
		return run.Result{}, err
	}
	defer done()
	a, err := r.attempt(plan.RunID, plan.Attempt)
	if err != nil {
		return run.Result{}, err
	}
	if !imageRef.MatchString(plan.Image) {
		return run.Result{}, builder.Errorf(builder.KindInvalidRequest, opRun, "image %.200q names no digest", plan.Image)
	}
	plan.Limits = r.cfg.limits(plan.Limits)
	f, err := a.run(ctx, plan, watch)
	if err != nil {
		if _, ok := errors.AsType[*builder.Error](err); !ok {
			err = unavailable(opRun, err)
		}
		return run.Result{}, err
	}
	return f.result()
}

// Forget implements run.Runner.
func (r *Runner) Forget(ctx context.Context, id string, number int) error {
	done, err := r.begin()
	if err != nil {
		return err
	}
	defer done()
	a, err := r.attempt(id, number)
	if err != nil {
		return err
	}
	lock, err := flock(ctx, r.state.root, a.folder+".lock", unix.LOCK_EX)
	if err != nil {
		return runCanceled(ctx)
	}
	defer lock.Close()
	if err := a.forget(ctx); err != nil {
		return unavailable("forgetting the run", err)
	}
	return nil
}

// forget removes everything; the lock is held.
func (a attempt) forget(ctx context.Context) error {
	root := a.runner.state.root
	err := a.kill(ctx)
	if err == nil {
		err = root.RemoveAll(a.folder)
	}
	if err == nil {
		// Who waits for it makes a new one.
		err = root.Remove(a.folder + ".lock")
	}
	return err
}

// usedImages returns the keys of images of attempts that have not ended.
func (r *Runner) usedImages() map[string]bool {
	used := make(map[string]bool)
	for _, name := range children(filepath.Join(r.state.path, "runs")) {
		a := attempt{runner: r, name: name, folder: path.Join("runs", name)}
		if m, ok := a.marker(); ok {
			if _, ended := a.ending(); !ended {
				used[m.Image] = true
			}
		}
	}
	return used
}

// sweep forgets attempts that ended long ago or that nobody started, and removes parts
// of images. What is locked is somebody's, and left.
func (r *Runner) sweep(ctx context.Context, now time.Time) {
	for _, name := range children(filepath.Join(r.state.path, "runs")) {
		a := attempt{runner: r, name: name, folder: path.Join("runs", name)}
		lock, err := tryFlock(r.state.root, a.folder+".lock", unix.LOCK_EX)
		if err != nil || lock == nil {
			continue
		}
		if a.expired(now) {
			// The next sweep tries again.
			_ = a.forget(ctx)
		}
		_ = lock.Close()
	}
	for _, name := range children(r.images.root.Name()) {
		if strings.HasPrefix(name, "part-") || !strings.HasPrefix(name, r.images.boot+"-") {
			r.images.remove(name)
		}
	}
}

func (a attempt) expired(now time.Time) bool {
	root, keep := a.runner.state.root, a.runner.cfg.Keep
	if info, err := root.Stat(a.file(endingFile)); err == nil {
		return now.Sub(info.ModTime()) > keep
	}
	m, ok := a.marker()
	return !ok || now.Sub(m.Made) > m.Timeout+keep
}

// runCanceled is the error of a call whose context is done.
func runCanceled(ctx context.Context) error {
	cause := context.Cause(ctx)
	kind := builder.KindCanceled
	switch {
	case leaves(ctx):
		kind = builder.KindInterrupted
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: opRun, Err: cause}
}

// leaves reports whether a canceled call leaves its process to another one.
func leaves(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return errors.Is(cause, builder.ErrShutdown) || errors.Is(cause, builder.ErrLeaseLost)
}
