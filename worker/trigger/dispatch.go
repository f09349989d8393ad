package trigger

import (
	"context"
	"time"

	"kiln/builder"
	"kiln/worker"
)

// dispatch starts, takes over and finishes runs, as the view says, until ctx ends; then
// it goes on until no run is in hand any more. It sleeps until something changes or time
// makes a difference.
func (t *Trigger) dispatch(ctx, work context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	stopped := ctx.Done()
	for {
		idle, next := t.step(work)
		if idle && (ctx.Err() != nil || work.Err() != nil) {
			return
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(worker.Jitter(time.Until(next)))
		}
		select {
		case <-t.woken:
		case <-timer.C:
		case <-stopped:
			stopped = nil
		}
	}
}

// step starts whatever can be done now. Idle means that nothing of it runs, next is when
// there will be more to do.
func (t *Trigger) step(work context.Context) (idle bool, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	moving, counts := t.moving()
	for _, s := range moving {
		due, act := t.duty(s)
		switch {
		case act == nil || t.executions[s.key] != nil || t.ending[s.key]:
		case due.After(now):
			if next.IsZero() || due.Before(next) {
				next = due
			}
		case !t.stopping && work.Err() == nil:
			act(work, s.stored)
		}
	}
	for _, of := range []state{stateWaiting, stateReady, stateStarting, stateRunning} {
		t.deps.Metrics.open.WithLabelValues(string(of)).Set(float64(counts[of]))
	}
	return len(t.executions)+len(t.ending) == 0, next
}

// duty is what this trigger has to do about a run, and when. A claim counts as abandoned
// when it was not renewed for a lease of the own clock. The caller has t.mu.
func (t *Trigger) duty(s *sighting) (time.Time, func(context.Context, stored)) {
	abandoned := s.since.Add(t.cfg.Lease)
	if s.Claim == "" {
		abandoned = s.NotBefore
	}
	switch s.State {
	case stateReady:
		if t.free > 0 {
			return s.NotBefore, t.launch
		}
	case stateStarting, stateRunning:
		if s.Place != t.cfg.Place {
			return s.since.Add(t.cfg.Lost), t.lose
		}
		if t.free > 0 {
			return abandoned, t.launch
		}
	case stateEnded:
		if !s.Told || s.Place == t.cfg.Place {
			return s.since.Add(t.cfg.Lease), t.conclude
		}
	case stateNone, stateWaiting:
	}
	return time.Time{}, nil
}

// launch takes a slot for a run. The caller has t.mu.
func (t *Trigger) launch(work context.Context, s stored) {
	t.free--
	t.enter(t.newExecution(work, s)) //nolint:contextcheck // it has its own, of the work
}

// enter executes a run in the slot that was taken for it. The caller has t.mu.
func (t *Trigger) enter(x *execution) {
	key := x.stored.key
	t.executions[key] = x
	if known := t.view[key]; known != nil && x.claimed {
		x.alert(known.stored)
	}
	t.deps.Metrics.inHand.Inc()
	t.jobs.Go(func() {
		t.execute(x)
		x.cancel(nil)
		t.mu.Lock()
		delete(t.executions, key)
		t.free++
		t.mu.Unlock()
		t.deps.Metrics.inHand.Dec()
		t.wake()
	})
}

// alert ends an execution that is not wanted any more, as the newest record says.
func (x *execution) alert(s stored) {
	switch {
	case s.Claim != x.claim && s.Attempt >= x.attempt:
		x.cancel(builder.ErrLeaseLost)
	case s.canceled():
		x.cancel(errCanceled)
	}
}

// conclude finishes a run that somebody decided and did not finish. The caller has t.mu.
func (t *Trigger) conclude(work context.Context, s stored) {
	t.aside(work, s, func(ctx context.Context) error {
		t.deps.Metrics.repairs.WithLabelValues("end").Inc()
		return t.finish(ctx, s, true)
	})
}

// lose ends a run whose place is gone: what became of its process nobody knows, and to
// start it again could be a second time. The caller has t.mu.
func (t *Trigger) lose(work context.Context, s stored) {
	t.aside(work, s, func(ctx context.Context) error {
		return t.settle(ctx, s, t.failed(s.record, lostCause(s.Owner, s.Place, t.cfg.Lost), failure{}))
	})
}

// aside does something about a run without a slot; what fails is tried again after a
// lease. The caller has t.mu.
func (t *Trigger) aside(work context.Context, s stored, do func(context.Context) error) {
	t.ending[s.key] = true
	t.jobs.Go(func() {
		ctx, cancel := detached(work)
		defer cancel()
		err := do(ctx)
		if err != nil {
			t.deps.Log.Warn().Err(err).Str("run_id", s.RunID).Msg("cannot finish a run yet")
		}
		t.mu.Lock()
		delete(t.ending, s.key)
		if known := t.view[s.key]; err != nil && known != nil {
			known.since = time.Now()
		}
		t.mu.Unlock()
		t.wake()
	})
}
