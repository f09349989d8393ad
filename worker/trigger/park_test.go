package trigger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"kiln/builder"
	"kiln/builder/run"
)

// park is where the processes of runs are: they go on when triggers die.
type park struct {
	w  *world
	mu sync.Mutex
	// processes are by run and attempt; starts are in order.
	processes map[string]*process
	starts    []string
	more      chan struct{}
	// play is what the process of a plan does; it is asked once for each start.
	play func(run.Plan) script
}

// script is what a process does.
type script struct {
	lines   []string
	exit    int
	results string
	// takes is how long it runs; forever is until it is ended.
	takes   time.Duration
	forever bool
	// broken is the error of an attempt that never gets to a process.
	broken error
}

type process struct {
	script
	started time.Time
	ended   chan struct{} // closed when it ended or was ended
	once    sync.Once
	killed  bool
}

func newPark(w *world) *park {
	return &park{w: w, processes: map[string]*process{}, more: make(chan struct{}), play: func(run.Plan) script {
		return script{lines: []string{"hello"}}
	}}
}

func (p *park) changedNext() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.more
}

func name(runID string, attempt int) string { return fmt.Sprintf("%s %d", runID, attempt) }

// start starts the process of an attempt, or finds it.
func (p *park) start(plan run.Plan) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := name(plan.RunID, plan.Attempt)
	if there := p.processes[id]; there != nil {
		return there, nil
	}
	s := p.play(plan)
	if s.broken != nil {
		return nil, s.broken
	}
	x := &process{script: s, started: time.Now().UTC(), ended: make(chan struct{})}
	p.processes[id] = x
	p.starts = append(p.starts, id)
	close(p.more)
	p.more = make(chan struct{})
	if !s.forever {
		time.AfterFunc(s.takes, func() { x.once.Do(func() { close(x.ended) }) })
	}
	return x, nil
}

func (p *park) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.starts)
}

func (p *park) left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.processes)
}

func (x *process) kill() {
	x.once.Do(func() {
		x.killed = true
		close(x.ended)
	})
}

// runner is a run.Runner of one trigger, whose death ends no process.
type runner struct {
	p *park
	l *link
}

func (runner) Name() string { return "fake" }

func (r runner) Run(ctx context.Context, plan run.Plan, watch run.Watch) (run.Result, error) {
	if r.l.dead.Load() {
		return run.Result{}, &builder.Error{Kind: builder.KindInterrupted, Op: "running", Err: errDead}
	}
	if ctx.Err() != nil {
		return run.Result{}, ended(ctx)
	}
	x, err := r.p.start(plan)
	if err != nil {
		return run.Result{}, err
	}
	if watch.Started != nil {
		watch.Started(x.started)
	}
	for _, line := range x.lines {
		_, _ = io.WriteString(watch.Logs, line+"\n")
	}
	select {
	case <-x.ended:
	case <-ctx.Done():
		cause := context.Cause(ctx)
		if !errors.Is(cause, builder.ErrShutdown) && !errors.Is(cause, builder.ErrLeaseLost) && !r.l.dead.Load() {
			x.kill()
		}
		return run.Result{}, ended(ctx)
	}
	if x.killed {
		return run.Result{}, builder.Errorf(builder.KindCanceled, "running", "it was ended")
	}
	result := run.Result{ExitCode: x.exit, Started: x.started, Finished: time.Now().UTC()}
	if x.results != "" {
		result.Results = []byte(x.results)
	}
	return result, nil
}

func ended(ctx context.Context) error {
	kind, cause := builder.KindCanceled, context.Cause(ctx)
	switch {
	case errors.Is(cause, builder.ErrShutdown), errors.Is(cause, builder.ErrLeaseLost):
		kind = builder.KindInterrupted
	case errors.Is(cause, context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: "running", Err: cause}
}

func (r runner) Forget(_ context.Context, runID string, attempt int) error {
	return r.l.call(func() error {
		r.p.mu.Lock()
		defer r.p.mu.Unlock()
		if x := r.p.processes[name(runID, attempt)]; x != nil {
			x.kill()
		}
		delete(r.p.processes, name(runID, attempt))
		return nil
	})
}
