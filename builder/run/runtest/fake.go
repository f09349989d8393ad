package runtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"

	"kiln/builder"
	"kiln/builder/run"
)

// Script is what a Fake's process does. ctx is done when the process has to end, logs
// takes its output. An error is how the runner fails, not the process.
type Script func(ctx context.Context, plan run.Plan, logs io.Writer) (run.Result, error)

// Fake is a runner whose processes are functions of this program. It keeps the contract
// of run.Runner around them: an attempt is started once, whoever asks for it later
// attaches. Safe for concurrent use.
type Fake struct {
	script Script
	*machine
}

// machine is where the processes of Fakes run.
type machine struct {
	mu        sync.Mutex
	processes map[string]*process
	starts    map[string]int
	plans     []run.Plan
}

var _ run.Runner = (*Fake)(nil)

// NewFake returns a Fake whose processes run the script; nil: they succeed at once.
func NewFake(script Script) *Fake {
	if script == nil {
		script = Exit(0)
	}
	return &Fake{script, &machine{processes: make(map[string]*process), starts: make(map[string]int)}}
}

// Another returns a Fake for the same processes, as if another program on the same
// machine had made it.
func (f *Fake) Another() *Fake { return &Fake{f.script, f.machine} }

// Name is "fake".
func (*Fake) Name() string { return "fake" }

// Starts is how many times processes of a run were started, all attempts together.
func (f *Fake) Starts(runID string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[runID]
}

// Plans returns the plans of the processes that were started, in order.
func (f *Fake) Plans() []run.Plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]run.Plan(nil), f.plans...)
}

// Running is the number of processes that run.
func (f *Fake) Running() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, p := range f.processes {
		if !p.ended() {
			n++
		}
	}
	return n
}

// Exit is a script that writes the lines and ends with the code.
func Exit(code int, lines ...string) Script {
	return func(_ context.Context, _ run.Plan, logs io.Writer) (run.Result, error) {
		for _, line := range lines {
			_, _ = io.WriteString(logs, line+"\n")
		}
		return run.Result{ExitCode: code}, nil
	}
}

// Wait is a script that goes on until release is closed, and then goes on with next.
func Wait(release <-chan struct{}, next Script) Script {
	return func(ctx context.Context, plan run.Plan, logs io.Writer) (run.Result, error) {
		select {
		case <-release:
			return next(ctx, plan, logs)
		case <-ctx.Done():
			return run.Result{ExitCode: 143}, nil
		}
	}
}

// Fail is a script by which the runner fails with an error of the kind.
func Fail(kind builder.Kind, message string) Script {
	return func(context.Context, run.Plan, io.Writer) (run.Result, error) {
		return run.Result{}, &builder.Error{Kind: kind, Op: "running", Err: errors.New(message)}
	}
}

func key(runID string, attempt int) string { return fmt.Sprintf("%s-%d", runID, attempt) }

// Run implements run.Runner.
func (f *Fake) Run(ctx context.Context, plan run.Plan, watch run.Watch) (run.Result, error) {
	if err := check(plan); err != nil {
		return run.Result{}, err
	}
	p, err := f.process(ctx, plan)
	if err != nil {
		return run.Result{}, err
	}
	if watch.Started != nil {
		watch.Started(p.started)
	}
	var limit <-chan time.Time
	if plan.Limits.Timeout > 0 {
		timer := time.NewTimer(time.Until(p.started.Add(plan.Limits.Timeout)))
		defer timer.Stop()
		limit = timer.C
	}
	read := 0
	for {
		lines, changed, ended := p.read(read)
		if read += len(lines); len(lines) > 0 && watch.Logs != nil {
			_, _ = watch.Logs.Write(lines)
		}
		if ended {
			return p.result, p.err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if leaves(ctx) {
				return run.Result{}, Canceled(ctx)
			}
			p.kill(Canceled(ctx))
		case <-limit:
			p.kill(builder.Errorf(builder.KindTimeout, "running", "it took longer than the limit of %s", plan.Limits.Timeout))
		}
	}
}

// process returns the attempt's, which it starts when there is none.
func (f *Fake) process(ctx context.Context, plan run.Plan) (*process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := key(plan.RunID, plan.Attempt)
	if p := f.processes[k]; p != nil {
		return p, nil
	}
	if ctx.Err() != nil {
		return nil, Canceled(ctx)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	p := &process{started: time.Now().UTC(), end: end, changed: make(chan struct{})}
	f.processes[k] = p
	f.starts[plan.RunID]++
	f.plans = append(f.plans, plan)
	go func() {
		result, err := f.script(life, plan, p)
		if _, ok := errors.AsType[*builder.Error](err); err != nil && !ok {
			err = &builder.Error{Kind: builder.KindUnavailable, Op: "running the script", Err: err}
		}
		result.Started, result.Finished = p.started, time.Now().UTC()
		p.finish(result, err)
	}()
	return p, nil
}

var (
	idRule    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	imageRule = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
)

func check(plan run.Plan) error {
	if !idRule.MatchString(plan.RunID) || plan.Attempt < 1 || !imageRule.MatchString(plan.Image) {
		return builder.Errorf(builder.KindInvalidRequest, "running", "run %q, attempt %d, image %q", plan.RunID, plan.Attempt, plan.Image)
	}
	return nil
}

// Forget implements run.Runner.
func (f *Fake) Forget(_ context.Context, runID string, attempt int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := key(runID, attempt)
	if p := f.processes[k]; p != nil {
		p.kill(builder.Errorf(builder.KindCanceled, "running", "it was forgotten"))
		delete(f.processes, k)
	}
	return nil
}

// process is one at work, or what is kept of it.
type process struct {
	started time.Time
	end     context.CancelFunc

	mu      sync.Mutex
	log     bytes.Buffer
	changed chan struct{}
	over    bool
	result  run.Result
	err     error
}

// Write implements io.Writer. What comes after the end is dropped.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.log.Write(text)
		p.tell()
	}
	return len(text), nil
}

func (p *process) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// finish says how the process ended, unless it has.
func (p *process) finish(result run.Result, err error) {
	// Afterwards, so that the script's own end does not come first.
	defer p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		if p.over, p.result, p.err = true, result, err; err != nil {
			p.result = run.Result{}
		}
		p.tell()
	}
}

func (p *process) kill(err error) { p.finish(run.Result{}, err) }

func (p *process) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// read returns the whole lines from a position on, what is closed when there is more,
// and whether there will be none.
func (p *process) read(from int) (lines []byte, changed <-chan struct{}, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines = bytes.Clone(p.log.Bytes()[from:])
	if !p.over {
		lines = lines[:bytes.LastIndexByte(lines, '\n')+1]
	} else if n := len(lines); n > 0 && lines[n-1] != '\n' {
		p.log.WriteByte('\n')
		lines = append(lines, '\n')
	}
	return lines, p.changed, p.over
}

func leaves(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return errors.Is(cause, builder.ErrShutdown) || errors.Is(cause, builder.ErrLeaseLost)
}

// Canceled is the error that the contract of run.Runner asks for when ctx is done.
func Canceled(ctx context.Context) error {
	kind := builder.KindCanceled
	switch {
	case leaves(ctx):
		kind = builder.KindInterrupted
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: "running", Err: context.Cause(ctx)}
}
