package worker

import (
	"context"
	"errors"
	"time"

	"kiln/worker/backlog"
)

// enders is how many requests a worker ends at a time without a slot.
const enders = 8

// dispatch starts builds and ends requests, as the view says, until ctx ends; then it
// goes on ending requests until no build runs any more. It sleeps until something
// changes or time makes a difference.
func (w *Worker) dispatch(ctx, work context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	stopped := ctx.Done()
	for {
		idle, next := w.step(ctx, work)
		if idle && (ctx.Err() != nil || work.Err() != nil) {
			return
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(Jitter(time.Until(next)))
		}
		select {
		case <-w.woken:
		case <-timer.C:
		case <-stopped:
			stopped = nil
		}
	}
}

// step starts whatever can be done now. Idle means that nothing of it runs.
func (w *Worker) step(ctx, work context.Context) (idle bool, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	lost, next := w.view.Tick(now)
	for _, e := range lost {
		w.lost(work, e, now)
	}
	for ctx.Err() == nil && w.free > 0 {
		e, revision, ok := w.view.Choose(now)
		if !ok {
			break
		}
		w.launch(work, e, revision)
	}
	for work.Err() == nil && w.ending < enders {
		e, _, ok := w.view.Due(now)
		if !ok {
			break
		}
		w.ending++
		w.jobs.Go(func() {
			again := w.end(work, e)
			w.mu.Lock()
			w.ending--
			w.mu.Unlock()
			w.release(e.Sequence, again)
		})
	}
	return w.free == w.cfg.Slots && w.ending == 0, next
}

// launch runs the build of an entry that is held. The caller has w.mu.
func (w *Worker) launch(work context.Context, e backlog.Entry, revision uint64) {
	w.free--
	ctx, cancel := context.WithCancelCause(work)
	x := &execution{entry: e, revision: revision, cancel: cancel}
	w.executions[e.Sequence] = x
	w.jobs.Go(func() {
		defer cancel(nil)
		w.deps.Metrics.inFlight.Inc()
		again := w.execute(ctx, x)
		w.deps.Metrics.inFlight.Dec()
		w.mu.Lock()
		sequence := x.entry.Sequence
		delete(w.executions, sequence)
		w.free++
		w.mu.Unlock()
		w.release(sequence, again)
	})
}

// lost sets an entry back whose owner gave no sign of life. The caller has w.mu.
func (w *Worker) lost(work context.Context, e backlog.Entry, now time.Time) {
	if !w.view.Hold(e.Sequence, now) {
		return
	}
	_, revision, _ := w.view.Get(e.Sequence)
	w.jobs.Go(func() {
		w.deps.Log.Info().Str("request_id", e.RequestID).Str("build_id", e.BuildID).Str("owner", e.Owner).
			Msg("the owner of a build gives no sign of life; the build is open to all")
		w.deps.Metrics.takeovers.Inc()
		w.release(e.Sequence, w.open(work, e, revision, time.Time{}))
		w.reach("lost entry opened")
	})
}

// open lets an entry wait for any worker, not before the given time. It returns when to
// try again if that could not be written.
func (w *Worker) open(ctx context.Context, e backlog.Entry, revision uint64, notBefore time.Time) (again time.Duration) {
	ctx, cancel := detached(ctx)
	defer cancel()
	e.State, e.Owner, e.NotBefore = backlog.Waiting, "", notBefore
	if _, err := w.write(ctx, e, revision); err != nil {
		return w.refresh(ctx, e.Sequence, revision, err)
	}
	return 0
}

// refresh reads an entry after a write that replaces the given revision failed, in case
// somebody else was first.
func (w *Worker) refresh(ctx context.Context, sequence, before uint64, cause error) (again time.Duration) {
	if known, ok := w.look(sequence); !ok || known > before {
		return 0 // the watch has shown it already
	}
	raw, revision, err := w.deps.Backlog.Get(ctx, backlog.Key(sequence))
	if errors.Is(err, ErrNotFound) {
		w.dropped(sequence, before+1)
		return 0
	}
	if err != nil || revision == before {
		w.deps.Log.Warn().Err(cause).Uint64("sequence", sequence).Msg("cannot change an entry of the backlog")
		return w.cfg.RetryDelay
	}
	e, err := backlog.Decode(raw)
	if err != nil {
		return w.cfg.RetryDelay
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view.Put(e, revision, time.Now())
	return 0
}

// release lets go of a held entry; this worker comes back to it after again, if that is
// not zero.
func (w *Worker) release(sequence uint64, again time.Duration) {
	later := time.Time{}
	if again > 0 {
		later = time.Now().Add(again)
	}
	w.mu.Lock()
	w.view.Release(sequence, later)
	w.mu.Unlock()
	w.wake()
}

// end ends a request that needs no build any more. It returns when to try again.
func (w *Worker) end(ctx context.Context, e backlog.Entry) (again time.Duration) {
	t := w.taskOf(e)
	w.mu.Lock()
	newer, superseded := w.view.SupersededBy(e.Sequence)
	w.mu.Unlock()
	if superseded && e.State == backlog.Waiting {
		reason := "A newer request for the same function and tag, " + newer.RequestID + ", superseded this one."
		return w.finish(ctx, t, func() verdict { return w.settle(ctx, t, t.canceledEvent(reason, newer.RequestID)) })
	}
	record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(e.BuildID))
	if err != nil {
		t.log.Warn().Err(err).Msg("cannot read the result of a build")
		return w.cfg.RetryDelay
	}
	w.observeBuild(record)
	if !record.value.finished() || record.revision <= e.Seen {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.view.Unfinished(e.BuildID)
		return 0
	}
	return w.conclude(ctx, t, record.value)
}
