package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v6"

	"kiln/builder"
)

// Worker consumes requests until it is told to stop. Any number of workers may
// consume the same queue.
type Worker struct {
	cfg  Config
	deps Deps
	// interrupt is closed by Interrupt.
	interrupt     chan struct{}
	interruptOnce sync.Once
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
	return &Worker{cfg: cfg, deps: deps, interrupt: make(chan struct{})}, nil
}

// Run takes and handles requests until ctx ends, then lets running builds go on
// for Config.SoftStop, then interrupts them and hands them back. It returns when
// nothing of it runs any more; stopping is not an error.
func (w *Worker) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	fetch, stopFetching := context.WithCancel(ctx)
	defer stopFetching()
	done := make(chan struct{})
	var escalation sync.WaitGroup
	escalation.Go(func() {
		w.escalate(ctx, done)
		stopFetching()
		cancel(builder.ErrShutdown)
	})

	var slots sync.WaitGroup
	for range w.cfg.Slots {
		slots.Go(func() { w.slot(fetch, work) })
	}
	slots.Wait()
	close(done)
	escalation.Wait()
	return nil
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

// slot handles one message after another. It owns no message while it fetches,
// and fetches none while it handles one.
func (w *Worker) slot(ctx, work context.Context) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 100 * time.Millisecond
	wait.MaxInterval = 10 * time.Second
	for ctx.Err() == nil {
		msg, err := w.deps.Queue.Next(ctx)
		if ctx.Err() != nil && msg == nil {
			return
		}
		if err != nil {
			w.deps.Metrics.fetchErrors.Inc()
			pause := wait.NextBackOff()
			w.deps.Log.Warn().Err(err).Dur("retry_in", pause).Msg("cannot fetch requests")
			sleep(ctx, pause)
			continue
		}
		wait.Reset()
		w.handle(work, msg)
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
