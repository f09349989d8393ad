package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"kiln/builder"
	"kiln/worker/backlog"
)

// Worker takes in requests, builds and ends them until it is told to stop. Any number
// of workers may share queue, ledger and backlog.
type Worker struct {
	cfg  Config
	deps Deps
	// interrupt is closed by Interrupt.
	interrupt     chan struct{}
	interruptOnce sync.Once
	// reach is called at every step that a crash could come after; for tests.
	reach func(step string)

	planned planCache
	// woken has the dispatcher look at the view.
	woken      chan struct{}
	synced     chan struct{}
	syncedOnce sync.Once
	// jobs are what runs for entries of the backlog. Work ends them.
	jobs sync.WaitGroup
	work context.Context //nolint:containedctx // of Run; jobs begin wherever an entry shows up

	// mu guards what follows.
	mu         sync.Mutex
	view       *backlog.View
	executions map[uint64]*execution
	// watched is closed and replaced when the watch showed something.
	watched chan struct{}
	// cancels are ids of requests that were canceled before they were taken in, with the
	// position of the cancel.
	cancels map[string]uint64
	free    int
	ending  int
	// stopping is true once nothing may start, drained once no watch may begin jobs.
	stopping, drained bool
}

// New returns a Worker that has not started. It reports every fault of cfg and deps.
func New(cfg Config, deps Deps) (*Worker, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("worker configuration: %w", err)
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	if deps.Metrics == nil {
		deps.Metrics = NewMetrics(nil)
	}
	return &Worker{
		cfg: cfg, deps: deps, interrupt: make(chan struct{}), reach: func(string) {},
		woken: make(chan struct{}, 1), synced: make(chan struct{}), watched: make(chan struct{}),
		executions: map[uint64]*execution{}, cancels: map[string]uint64{}, free: cfg.Slots,
		view: backlog.New(backlog.Policy{
			Self: cfg.Name, Lease: cfg.Lease, Ageing: cfg.Ageing, PerProject: cfg.ProjectLimit, Total: cfg.TotalLimit,
		}),
	}, nil
}

// Run takes in and handles requests until ctx ends, then lets running builds go on for
// Config.SoftStop, then interrupts them and opens them to other workers. It returns when
// nothing of it runs any more; stopping is not an error. It is called once.
func (w *Worker) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	w.work = work
	fetch, stopFetching := context.WithCancel(ctx)
	defer stopFetching()
	done := make(chan struct{})
	var escalation sync.WaitGroup
	escalation.Go(func() {
		w.escalate(ctx, done)
		stopFetching()
		cancel(builder.ErrShutdown)
	})
	look, stopLooking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLooking()
	var watches sync.WaitGroup
	watches.Go(func() { w.watchBacklog(look) })
	watches.Go(func() { w.watchBuilds(look) })

	select {
	case <-w.synced:
		w.serve(fetch, work)
	case <-fetch.Done():
	}
	w.mu.Lock()
	w.drained = true
	w.mu.Unlock()
	w.jobs.Wait()
	stopLooking()
	watches.Wait()
	close(done)
	escalation.Wait()
	return nil
}

// serve runs what makes up a worker until it has stopped.
func (w *Worker) serve(fetch, work context.Context) {
	var parts sync.WaitGroup
	for range w.cfg.Intake {
		parts.Go(func() { w.consume(fetch, w.deps.Queue, func(m Message) { w.takeIn(work, m) }) })
	}
	if w.deps.Cancels != nil {
		parts.Go(func() { w.consume(fetch, w.deps.Cancels, func(m Message) { w.takeCancel(work, m) }) })
	}
	if w.deps.History != nil {
		parts.Go(func() { w.reconcile(fetch, work) })
	}
	context.AfterFunc(fetch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.stopping = true
	})
	w.dispatch(fetch, work)
	parts.Wait()
	w.dispatch(fetch, work) // what the last messages left
}

// Interrupt stops without a soft stop, or ends the one under way: running builds are
// interrupted and handed back. Safe to call at any time and more than once.
func (w *Worker) Interrupt() { w.interruptOnce.Do(func() { close(w.interrupt) }) }

// escalate returns when running builds have to end: at an interrupt, when the
// soft-stop time after ctx is over, or when there are none any more.
func (w *Worker) escalate(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-w.interrupt:
		return
	case <-ctx.Done():
	}
	timer := time.NewTimer(w.cfg.SoftStop)
	defer timer.Stop()
	select {
	case <-done:
	case <-w.interrupt:
	case <-timer.C:
	}
}
