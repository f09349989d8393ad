package trigger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/worker"
)

// execution is a run that this trigger has in hand, or is about to.
type execution struct {
	trigger *Trigger
	ctx     context.Context //nolint:containedctx // of the one goroutine that executes it
	cancel  context.CancelCauseFunc
	note    zerolog.Logger
	// claim is what the record holds while the run is this execution's.
	claim   string
	attempt int
	// claimed is true when the record says so already; takeover when the attempt was
	// another trigger's.
	claimed, takeover bool

	// mu orders writes of the record.
	mu     sync.Mutex
	stored stored

	// announcing publishes the start beside the process; announced is set by it.
	announcing sync.WaitGroup
	announced  bool
	// renewed is when the lease began or was renewed.
	renewed time.Time
	stop    func()
	log     Log
	tail    worker.Tail
	hidden  *builder.Redactor
}

var (
	errCanceled = errors.New("the run was canceled")
	// errTimeout is a deadline to runners.
	errTimeout = fmt.Errorf("the run took longer than it may: %w", context.DeadlineExceeded)
)

func (t *Trigger) newExecution(work context.Context, s stored) *execution {
	x := &execution{
		trigger: t, stored: s, claim: rand.Text(), attempt: s.Attempt, takeover: s.claimed(), stop: func() {}, log: noLog{},
		hidden: builder.NewRedactor(), note: t.deps.Log.With().Str("run_id", s.RunID).Logger(),
	}
	if !x.takeover {
		x.attempt++
	}
	x.ctx, x.cancel = context.WithCancelCause(work)
	return x
}

// take is what the record of a claimed run says.
func (x *execution) take(r *record) {
	t := x.trigger
	r.State, r.Attempt, r.Claim = stateStarting, x.attempt, x.claim
	if !r.Started.IsZero() {
		r.State = stateRunning
	}
	r.Owner, r.Place, r.Runner = t.cfg.Name, t.cfg.Place, t.deps.Runner.Name()
	r.NotBefore, r.Expires = time.Time{}, time.Now().UTC().Add(t.cfg.Lease)
	x.renewed = time.Now()
}

// execute claims a run, lets it run, and ends it.
func (t *Trigger) execute(x *execution) {
	if !x.claimed {
		next := x.stored.record
		x.take(&next)
		ctx, cancel := detached(x.ctx)
		err := t.save(ctx, &x.stored, next)
		cancel()
		if err != nil {
			if !errors.Is(err, worker.ErrConflict) {
				x.note.Warn().Err(err).Msg("cannot claim a run")
			}
			t.look(x.ctx, x.stored.key)
			return
		}
		t.reach("run claimed")
	}
	x.note = x.note.With().Int("attempt", x.attempt).Logger()
	if x.takeover {
		t.deps.Metrics.takeovers.Inc()
		x.note.Info().Msg("taking over a run")
	}
	x.hold()
	defer func() { x.stop() }()
	if x.takeover && x.snapshot().canceled() {
		// The process, if there is one, ends with what is kept of it.
		x.cancel(errCanceled)
		x.conclude(run.Result{}, x.remove())
		return
	}
	plan, err := x.plan()
	var result run.Result
	if err == nil {
		result, err = x.run(plan)
	}
	x.conclude(result, err)
}

// hold renews the claim until x.stop is called.
func (x *execution) hold() {
	t := x.trigger
	x.stop = worker.Hold(x.ctx, t.cfg.Lease, func(ctx context.Context) error {
		began := time.Now()
		err := x.update(ctx, func(r *record) { r.Expires = began.UTC().Add(t.cfg.Lease) })
		if err == nil {
			x.mu.Lock()
			x.renewed = began
			x.mu.Unlock()
		}
		return err
	}, func(err error) {
		t.deps.Metrics.errors.WithLabelValues("lease").Inc()
		x.note.Warn().Err(err).Msg("cannot renew the claim of a run")
	}, x.cancel)
}

// update changes the record of a run in hand. What others wrote meanwhile, a cancel, is
// kept; the error matches worker.ErrConflict when the run is somebody else's.
func (x *execution) update(ctx context.Context, change func(*record)) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		next := x.stored.record
		change(&next)
		err := x.trigger.save(ctx, &x.stored, next)
		if !errors.Is(err, worker.ErrConflict) {
			return err
		}
		now, readErr := x.trigger.load(ctx, x.stored.key)
		if readErr != nil {
			return readErr
		}
		if now.Claim != x.claim {
			return err
		}
		x.stored = now
	}
}

// remove ends the process of a canceled run that another trigger started.
func (x *execution) remove() error {
	ctx, cancel := detached(x.ctx)
	defer cancel()
	if err := x.trigger.deps.Runner.Forget(ctx, x.trigger.runnerID(x.snapshot().RunID), x.attempt); err != nil {
		return &builder.Error{Kind: builder.KindLeaseLost, Op: "ending the process", Err: err}
	}
	return errCanceled
}

// snapshot is the record as it was read or written last.
func (x *execution) snapshot() stored {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stored
}

// plan is what the runner is to execute.
func (x *execution) plan() (run.Plan, error) {
	t, s := x.trigger, x.snapshot()
	request, err := t.request(x.ctx, s)
	if err != nil {
		return run.Plan{}, err
	}
	job := Job{RunID: t.runnerID(s.RunID), Attempt: x.attempt, Request: *request, Image: s.Image}
	if t.deps.Secrets != nil {
		if job.Secrets, err = t.deps.Secrets.Secrets(x.ctx, s.Function.Project); err != nil {
			return run.Plan{}, err
		}
	}
	plan, err := t.deps.Resolve(job)
	plan.RunID, plan.Attempt = job.RunID, job.Attempt
	if err == nil && plan.Source != nil && t.deps.PinSource != nil {
		err = x.pinSource(plan)
	}
	return plan, err
}

// pinSource decides once for all attempts which code is loaded.
func (x *execution) pinSource(plan run.Plan) error {
	if plan.Source.Version = x.snapshot().Source; plan.Source.Version != "" {
		return nil
	}
	version, err := x.trigger.deps.PinSource(x.ctx, plan.Source.URL, plan.SourceEnv)
	if err != nil {
		return err
	}
	plan.Source.Version = version
	if err := x.update(x.ctx, func(r *record) { r.Source = version }); err != nil {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "recording the version of the source", Err: err}
	}
	x.trigger.reach("source pinned")
	return nil
}

// run executes the plan and blocks until the process ended.
func (x *execution) run(plan run.Plan) (run.Result, error) {
	t := x.trigger
	values := make([]string, 0, len(plan.Secrets)+len(plan.SourceEnv))
	for _, v := range plan.Secrets {
		values = append(values, v.Value)
	}
	for _, v := range plan.SourceEnv {
		values = append(values, v)
	}
	x.hidden = builder.NewRedactor(values...)
	out, closeOut := x.output()
	limit := plan.Limits.Timeout
	if limit <= 0 {
		limit = t.cfg.Timeout
	}
	var deadline *time.Timer
	defer func() {
		if deadline != nil {
			deadline.Stop()
		}
	}()
	x.mu.Lock()
	old := time.Since(x.renewed) > t.cfg.Lease*2/3
	x.mu.Unlock()
	if old { // this process was stopped for a while; the run may be somebody else's
		x.cancel(builder.ErrLeaseLost)
		return run.Result{}, builder.ErrLeaseLost
	}
	t.reach("process wanted")
	running, ended := context.WithCancel(x.ctx)
	defer ended()
	result, err := t.deps.Runner.Run(x.ctx, plan, run.Watch{Logs: out, Started: func(at time.Time) {
		deadline = time.AfterFunc(time.Until(at.Add(limit)), func() { x.cancel(errTimeout) })
		x.announcing.Go(func() { x.keepAnnouncing(running, at) })
	}})
	ended()
	closeOut()
	if kind := builder.KindOf(err); err != nil && kind != builder.KindInterrupted && kind != builder.KindLeaseLost {
		fmt.Fprintf(x.log, "kiln: attempt %d ended: %s: %s\n", x.attempt, kind, firstLine(x.clean(err).Error()))
	}
	return result, err
}

// output is where the process's lines go: without secrets, into the log, after what an
// earlier trigger wrote of the same attempt, and into the tail that a failure would carry.
func (x *execution) output() (out io.Writer, closeAll func()) {
	t := x.trigger
	key := x.snapshot().key
	x.log = t.deps.Logs.Resume(key, x.attempt)
	rest := &skipping{w: x.log}
	if x.takeover {
		ctx, cancel := detached(x.ctx)
		defer cancel()
		n, err := t.deps.Logs.Stored(ctx, key, x.attempt)
		if err != nil {
			x.note.Warn().Err(err).Msg("lines of the run's log may be there twice")
		}
		rest.skip = n
	}
	closers := make([]io.Closer, 0, 1+len(t.deps.Hidden))
	out = io.MultiWriter(&x.tail, rest)
	for _, r := range append([]*builder.Redactor{x.hidden}, t.deps.Hidden...) {
		w := r.Writer(out)
		closers = append(closers, w)
		out = w
	}
	return out, func() {
		for _, c := range slices.Backward(closers) {
			_ = c.Close()
		}
	}
}

// keepAnnouncing tells the start until that succeeds, the process has ended or the run is
// somebody else's.
func (x *execution) keepAnnouncing(running context.Context, at time.Time) {
	for try := 1; ; try++ {
		ctx, cancel := detached(running)
		err := x.announce(ctx, at)
		cancel()
		if err == nil {
			return
		}
		x.note.Warn().Err(err).Msg("cannot tell that a run started yet")
		if worker.Sleep(running, worker.Delay(try, x.trigger.cfg.RetryDelay, x.trigger.cfg.RetryMaxDelay)); running.Err() != nil {
			return
		}
	}
}

// announce records that the process runs and then tells it.
func (x *execution) announce(ctx context.Context, at time.Time) error {
	t := x.trigger
	if s := x.snapshot(); s.State != stateRunning || !s.Started.Equal(at) {
		err := x.update(ctx, func(r *record) { r.State, r.Started = stateRunning, at.UTC() })
		if err != nil {
			return err
		}
		t.reach("start recorded")
	}
	r := x.snapshot().record
	if err := t.tell(ctx, t.started(r), x.takeover, r.Ready); err != nil {
		return err
	}
	if !x.takeover {
		t.deps.Metrics.start.Observe(max(0, at.Sub(r.Ready).Seconds()))
	}
	x.announced = true
	t.reach("start published")
	return nil
}

func (x *execution) observeDuration(result run.Result, err error) {
	code := ""
	switch {
	case err != nil:
		code = string(builder.KindOf(err))
	case result.ExitCode != 0:
		code = string(KindRunFailed)
	}
	if !result.Started.IsZero() {
		x.trigger.deps.Metrics.duration.WithLabelValues(x.stored.Runner, code).Observe(result.Finished.Sub(result.Started).Seconds())
	}
}

// clean is err without secrets.
func (x *execution) clean(err error) error {
	return &builder.Error{Kind: builder.KindOf(err), Err: errors.New(x.hidden.Text(err.Error()))}
}

// request is the run as it was requested.
func (t *Trigger) request(ctx context.Context, s stored) (*events.RunRequest, error) {
	if r := t.requests.get(s.key, s.Sequence); r != nil {
		return r, nil
	}
	m, err := t.deps.Requests.Read(ctx, s.Sequence)
	if errors.Is(err, worker.ErrNotFound) {
		return nil, builder.Errorf(builder.KindInvalidRequest, "reading the request", "it is not stored any more")
	}
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindUnavailable, Op: "reading the request", Err: err}
	}
	a := newArrival(m, s.Sequence)
	if a.fault != nil {
		return nil, a.fault
	}
	return a.request, nil
}
