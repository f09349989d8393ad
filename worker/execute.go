package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kiln/builder"
	"kiln/worker/backlog"
)

// execution is a build that this worker runs, or is about to. Its entry is the request
// that leads: the others of the build wait for it.
type execution struct {
	// Of these, Worker.mu guards access once the execution is launched.
	entry    backlog.Entry
	revision uint64
	// over is true when nobody can take the lead any more.
	over bool

	cancel context.CancelCauseFunc
}

// errNobodyWaits is the cause of a build's end when all its requests were canceled.
var errNobodyWaits = &builder.Error{Kind: builder.KindCanceled, Op: "building", Err: errors.New("every request for the build was canceled")}

// execute brings the build of an entry to its end and then the leading request. It
// returns when this worker should come back to that one, zero if it need not.
func (w *Worker) execute(ctx context.Context, x *execution) (again time.Duration) {
	if x.entry.State == backlog.Waiting {
		e := x.entry
		e.State, e.Owner, e.NotBefore = backlog.Running, w.cfg.Name, time.Time{}
		revision, err := w.write(ctx, e, x.revision)
		if err != nil {
			end, cancel := detached(ctx)
			defer cancel()
			return w.refresh(end, e.Sequence, x.revision, err)
		}
		w.lead(x, e, revision)
		w.reach("entry claimed")
	}
	if !w.admitted(ctx, x) {
		return w.giveBack(ctx, x, time.Time{})
	}
	t, err := w.prepare(ctx, x)
	if err != nil {
		return w.postpone(ctx, x, t, err)
	}
	if ended, v := w.ended(ctx, t); ended {
		return w.finish(ctx, t, func() verdict { return v })
	}
	if t.plan.BuildID != x.entry.BuildID {
		return w.renew(ctx, x, t)
	}
	return w.obtain(ctx, x, t)
}

// lead makes the entry the one that leads.
func (w *Worker) lead(x *execution, e backlog.Entry, revision uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x.entry, x.revision = e, revision
}

func (w *Worker) leader(x *execution) (backlog.Entry, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return x.entry, x.revision
}

// admitted waits until the watch shows who runs since before, and reports whether the
// build is within the bounds.
func (w *Worker) admitted(ctx context.Context, x *execution) bool {
	for {
		w.mu.Lock()
		within, ok := w.view.Within(x.entry.Sequence)
		changed := w.watched
		w.mu.Unlock()
		if ok {
			return within
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// prepare returns the planned task of the entry and reads what the ledger knows of the
// request. The task is never nil.
func (w *Worker) prepare(ctx context.Context, x *execution) (*task, error) {
	t := w.planned.take(x.entry.Sequence)
	if t != nil {
		return t, w.recall(ctx, t)
	}
	raw, err := w.deps.Queue.Read(ctx, x.entry.Sequence)
	if err != nil {
		t := w.taskOf(x.entry)
		if recalled := w.recall(ctx, t); recalled != nil {
			err = recalled
		}
		return t, &builder.Error{Kind: builder.KindUnavailable, Op: "reading the stored request", Err: err}
	}
	t = w.newTask(raw, x.entry.Sequence)
	if err := w.recall(ctx, t); err != nil || t.record.value.Terminal != nil {
		return t, err
	}
	if t.fault != nil {
		return t, t.fault
	}
	request, err := w.resolve(t)
	if err != nil {
		return t, err
	}
	return t, w.plan(ctx, t, request)
}

// postpone decides what becomes of a request whose build could not be begun.
func (w *Worker) postpone(ctx context.Context, x *execution, t *task, cause error) (again time.Duration) {
	switch decide(ctx, cause, t.record.value.Tries+1 >= w.cfg.MaxAttempts) {
	case fateSettle:
		return w.finish(ctx, t, func() verdict { return w.fail(ctx, t, cause) })
	case fateRetry:
		return w.giveBack(ctx, x, time.Now().Add(w.retry(ctx, t, cause).delay))
	case fateWait, fateHandBack, fateAbandon:
	}
	return w.giveBack(ctx, x, time.Time{})
}

// renew gives an entry the build that its request needs now: the base moved, or what
// the worker makes of the request changed.
func (w *Worker) renew(ctx context.Context, x *execution, t *task) (again time.Duration) {
	record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(t.plan.BuildID))
	if err != nil {
		return w.postpone(ctx, x, t, err)
	}
	w.observeBuild(record)
	e, revision := w.leader(x)
	next := t.entry(e.Worker, record.revision, e.Accepted)
	if record.value.Status == statusCompleted && !t.rebuild {
		next.Seen = record.revision - 1 // it ends this request
	}
	t.log.Info().Str("build_before", e.BuildID).Msg("the request needs another build than when it was accepted")
	return w.open(ctx, next, revision, time.Time{})
}

// giveBack lets the leading request wait for any worker.
func (w *Worker) giveBack(ctx context.Context, x *execution, notBefore time.Time) (again time.Duration) {
	e, revision := w.finalLeader(x)
	return w.open(ctx, e, revision, notBefore)
}

// finalLeader is the leader, and nobody takes the lead after it.
func (w *Worker) finalLeader(x *execution) (backlog.Entry, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x.over = true
	return x.entry, x.revision
}

// obtain claims the build and runs it, unless somebody else does or did.
func (w *Worker) obtain(ctx context.Context, x *execution, t *task) (again time.Duration) {
	record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(t.plan.BuildID))
	if err != nil {
		return w.postpone(ctx, x, t, err)
	}
	w.observeBuild(record)
	if record.revision > x.entry.Seen && record.value.finished() {
		ok, err := record.value.Status == statusFailed, error(nil)
		if !ok {
			ok, err = w.readable(ctx, t, record.value)
		}
		if err != nil {
			return w.postpone(ctx, x, t, err)
		}
		if ok {
			return w.conclude(ctx, t, record.value)
		}
	}
	for {
		if err := w.claim(ctx, &record, t.id); err != nil {
			return w.postpone(ctx, x, t, err)
		}
		w.observeBuild(record)
		w.reach("build claimed")
		if n := record.value.Lost; n >= w.cfg.MaxAttempts {
			return w.giveUp(ctx, x, t, &record, builder.Errorf(builder.KindUnavailable, "building", "%d workers went away while they ran it", n))
		}
		larger, again := w.attempt(ctx, x, t, &record)
		if !larger {
			return again
		}
	}
}

// readable reports whether the image of a finished build can be used.
func (w *Worker) readable(ctx context.Context, t *task, r buildRecord) (bool, error) {
	err := w.deps.Builder.Verify(ctx, t.plan, r.ImageRef)
	if err != nil && builder.KindOf(err) == builder.KindUnavailable && !errors.Is(err, builder.ErrImageMissing) {
		return false, err
	}
	return err == nil, nil
}

// attempt runs the claimed build once and records how it ended. Larger means that it is
// to be run again with more resources.
func (w *Worker) attempt(ctx context.Context, x *execution, t *task, record *entry[buildRecord]) (larger bool, again time.Duration) {
	t.attempt, t.started = record.value.Attempt, record.value.Started
	t.plan.Attempt = t.attempt
	log := t.log
	t.log = log.With().Int("attempt", t.attempt).Logger()
	defer func() { t.log = log }()

	result, err := w.build(ctx, x, t, record)
	end, cancel := detached(ctx)
	defer cancel()
	w.reach("build ended")
	canceled := errors.Is(context.Cause(ctx), errNobodyWaits)
	if err != nil && !canceled && builder.KindOf(err) == builder.KindOutOfMemory && w.cfg.larger(t.plan.Limits, record.value.Class) {
		t.log.Info().Str("class", w.cfg.Classes[record.value.Class+1].Name).Msg("out of memory; the build gets more")
		w.note(t, w.vacate(end, record, builder.KindOutOfMemory, func(r *buildRecord) { r.Class++ }))
		return true, 0
	}
	e, revision := w.finalLeader(x)
	if err == nil {
		err = w.complete(end, record, w.deps.Builder.ImageRef(t.plan, result.Digest), result, e.RequestID)
		w.reach("build recorded")
	}
	if err == nil {
		w.observeBuild(*record)
		return false, w.conclude(ctx, w.follow(t, e), record.value)
	}
	if canceled {
		w.note(t, w.vacate(end, record, builder.KindCanceled, nil))
		return false, 0
	}
	lastTry := record.value.Tries+1 >= w.cfg.MaxAttempts
	switch decide(ctx, err, lastTry) {
	case fateAbandon:
		t.log.Warn().Msg("the build is somebody else's now")
		return false, 0
	case fateHandBack, fateWait:
		w.note(t, w.vacate(end, record, builder.KindInterrupted, nil))
		return false, w.open(ctx, e, revision, time.Time{})
	case fateRetry:
		t.log.Warn().Err(err).Int("try", record.value.Tries+1).Msg("the build broke and is tried again")
		w.deps.Metrics.retries.WithLabelValues(string(builder.KindUnavailable)).Inc()
		w.note(t, w.vacate(end, record, builder.KindUnavailable, func(r *buildRecord) { r.broke(t.clean(err.Error())) }))
		return false, w.open(ctx, e, revision, time.Now().Add(w.delay(record.value.Tries)))
	case fateSettle:
	}
	return false, w.giveUp(ctx, x, t, record, err)
}

// giveUp records that the build failed for all who wait for it, and ends the request
// that leads.
func (w *Worker) giveUp(ctx context.Context, x *execution, t *task, record *entry[buildRecord], cause error) (again time.Duration) {
	e, revision := w.finalLeader(x)
	end, cancel := detached(ctx)
	defer cancel()
	if err := w.failBuild(end, t, record, cause, e.RequestID); err != nil {
		w.note(t, err)
		return w.open(ctx, e, revision, time.Now().Add(w.cfg.RetryDelay))
	}
	w.reach("build recorded")
	return w.conclude(ctx, w.follow(t, e), record.value)
}

// follow is the task of the request that leads at the end: t, or that of another one
// that took the lead.
func (w *Worker) follow(t *task, e backlog.Entry) *task {
	if e.Sequence == t.sequence {
		return t
	}
	return w.taskOf(e)
}

func (w *Worker) note(t *task, err error) {
	if err != nil {
		t.log.Warn().Err(err).Msg("the build stays claimed until its lease ends")
	}
}

// build executes the claimed build under its lease, with its log.
func (w *Worker) build(ctx context.Context, x *execution, t *task, record *entry[buildRecord]) (builder.Result, error) {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	plan := t.plan
	plan.Limits = w.cfg.scaled(plan.Limits, record.value.Class)
	stop := w.hold(ctx, x, record, lost)
	defer stop()

	if err := w.deps.Publisher.Publish(ctx, t.startedEvent(w.cfg.Name, w.cfg.LogSubject(t.plan.BuildID))); err != nil {
		return builder.Result{}, &builder.Error{Kind: builder.KindUnavailable, Op: "publishing build.started", Err: err}
	}
	w.reach("start published")
	t.log.Info().Str("engine", t.engine).Str("image", t.plan.Target).Str("base", t.plan.Base.Ref).Msg("build started")
	logs := w.deps.Logs.Open(t.plan.BuildID, t.attempt)
	defer logs.Close()
	out := io.MultiWriter(&t.tail, logs)

	began := time.Now()
	result, err := w.deps.Builder.Build(ctx, plan, out)
	if result.Duration == 0 {
		result.Duration = time.Since(began)
	}
	t.buildMS = result.Duration.Milliseconds()
	if errors.Is(context.Cause(ctx), builder.ErrLeaseLost) {
		err = &builder.Error{Kind: builder.KindLeaseLost, Op: "holding the build", Err: builder.ErrLeaseLost}
	}
	code := ""
	if err != nil {
		code = string(builder.KindOf(err))
		fmt.Fprintf(logs, "kiln: attempt %d ended: %s: %s\n", t.attempt, code, firstLine(t.clean(err.Error())))
	} else {
		fmt.Fprintf(logs, "kiln: pushed %s in %s\n", w.deps.Builder.ImageRef(t.plan, result.Digest), result.Duration.Round(time.Millisecond))
	}
	w.deps.Metrics.duration.WithLabelValues(t.engine, code).Observe(result.Duration.Seconds())
	return result, err
}
