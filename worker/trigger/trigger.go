package trigger

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"kiln/builder"
	"kiln/worker"
)

// Trigger takes in runs, waits for their images and starts them, until it is told to
// stop. Any number of triggers may share queues and store.
type Trigger struct {
	cfg  Config
	deps Deps
	// interrupt is closed by Interrupt.
	interrupt     chan struct{}
	interruptOnce sync.Once
	// reach is called at every step that a crash could come after; for tests.
	reach func(step string)

	requests requestCache
	// woken has the dispatcher look at the view.
	woken chan struct{}
	// listening is closed when changes of runs are heard, synced when all open ones are
	// known too.
	listening, synced         chan struct{}
	listeningOnce, syncedOnce sync.Once
	// jobs are what runs for single runs. Work ends them.
	jobs sync.WaitGroup
	work context.Context //nolint:containedctx // of Run; jobs begin wherever a run shows up

	// mu guards what follows.
	mu   sync.Mutex
	view map[string]*sighting
	// opened are the runs for which something is to be done, and since when that is known.
	opened map[string]time.Time
	// executions are the runs in hand; ending those that are being finished.
	executions map[string]*execution
	ending     map[string]bool
	free       int
	// stopping is true once nothing may start.
	stopping bool
}

// New returns a Trigger that has not started. It reports every fault of cfg and deps.
func New(cfg Config, deps Deps) (*Trigger, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("trigger configuration: %w", err)
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	if deps.Metrics == nil {
		deps.Metrics = NewMetrics(nil)
	}
	return &Trigger{
		cfg: cfg, deps: deps, interrupt: make(chan struct{}), reach: func(string) {},
		woken: make(chan struct{}, 1), listening: make(chan struct{}), synced: make(chan struct{}),
		view: map[string]*sighting{}, opened: map[string]time.Time{}, executions: map[string]*execution{}, ending: map[string]bool{}, free: cfg.Slots,
	}, nil
}

// Run takes in and starts runs until ctx ends, then lets those in hand go on for
// Config.SoftStop, then leaves them to other triggers of the place: their processes go
// on. It returns when nothing of it runs any more; stopping is not an error. It is called
// once.
func (t *Trigger) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	t.work = work
	fetch, stopFetching := context.WithCancel(ctx)
	defer stopFetching()
	done := make(chan struct{})
	var escalation sync.WaitGroup
	escalation.Go(func() {
		t.escalate(ctx, done)
		stopFetching()
		cancel(builder.ErrShutdown)
	})
	look, stopLooking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLooking()
	var watches sync.WaitGroup
	watches.Go(func() { t.watchRuns(look) })
	watches.Go(func() { t.watchOpen(look) })
	select {
	case <-t.synced:
		t.serve(fetch, work)
	case <-fetch.Done():
	}
	t.jobs.Wait()
	stopLooking()
	watches.Wait()
	t.jobs.Wait()
	close(done)
	escalation.Wait()
	return nil
}

// serve runs what makes up a trigger until it has stopped.
func (t *Trigger) serve(fetch, work context.Context) {
	var parts sync.WaitGroup
	consume := func(q worker.Queue, what string, handle func(context.Context, worker.Message) answer) {
		parts.Go(func() {
			worker.Consume(fetch, q, func(err error, retryIn time.Duration) {
				t.deps.Metrics.errors.WithLabelValues("fetch").Inc()
				t.deps.Log.Warn().Err(err).Str("queue", what).Dur("retry_in", retryIn).Msg("cannot fetch messages")
			}, func(m worker.Message) { t.take(work, m, handle) })
		})
	}
	for range t.cfg.Intake {
		consume(t.deps.Requests, "runs", t.takeRequest)
		consume(t.deps.Builds, "builds", t.takeBuild)
	}
	consume(t.deps.Cancels, "cancels", t.takeCancel)
	parts.Go(func() { t.reconcile(fetch, work) })
	context.AfterFunc(fetch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.stopping = true
	})
	t.dispatch(fetch, work)
	parts.Wait()
	t.dispatch(fetch, work) // what the last messages left
}

// Interrupt stops without a soft stop, or ends the one under way. Safe to call at any
// time and more than once.
func (t *Trigger) Interrupt() { t.interruptOnce.Do(func() { close(t.interrupt) }) }

// escalate returns when runs in hand have to be left: at an interrupt, when the soft-stop
// time after ctx is over, or when there are none any more.
func (t *Trigger) escalate(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-t.interrupt:
		return
	case <-ctx.Done():
	}
	timer := time.NewTimer(t.cfg.SoftStop)
	defer timer.Stop()
	select {
	case <-done:
	case <-t.interrupt:
	case <-timer.C:
	}
}

func (t *Trigger) source() string { return "/kiln/trigger/" + strings.ReplaceAll(t.cfg.Name, " ", "-") }

// answer is what the queue is told: an Ack, or a Nak with a delay.
type answer struct {
	again bool
	delay time.Duration
}

// answerTimeout bounds what is written for one message.
const answerTimeout = 20 * time.Second

// take brings one message to its answer. Handling takes less than a lease, or the message
// comes again, which harms nobody.
func (t *Trigger) take(work context.Context, msg worker.Message, handle func(context.Context, worker.Message) answer) {
	ctx, cancel := detached(work)
	defer cancel()
	a := handle(ctx, msg)
	end, cancelEnd := detached(work)
	defer cancelEnd()
	var err error
	if a.again {
		err = msg.Nak(end, a.delay)
	} else {
		err = msg.Ack(end)
	}
	if err != nil {
		t.deps.Log.Warn().Err(err).Uint64("sequence", msg.Sequence()).Msg("cannot answer the queue; the message will come again")
	}
	t.reach("message answered")
}

// stalled answers when the store or the event stream cannot be used.
func (t *Trigger) stalled(key string, err error) answer {
	t.deps.Metrics.errors.WithLabelValues("store").Inc()
	t.deps.Log.Warn().Err(err).Str("run", key).Msg("cannot use the store of runs or the event stream")
	return answer{again: true, delay: t.cfg.RetryDelay}
}

// detached returns a context that outlives a stop of the trigger, bounded in time.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
}
