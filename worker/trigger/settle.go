package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/worker"
)

// end decides how the run ends.
func (r *record) end(e events.Event) error {
	m, err := events.Encode(e, events.Subjects{})
	if err != nil {
		return err
	}
	r.State, r.Terminal, r.TerminalType = stateEnded, json.RawMessage(m.Data), e.Type
	r.free()
	return nil
}

// terminal is the event that was decided.
func (r record) terminal() (events.Event, error) {
	e, err := events.Decode(events.Message{Subject: string(r.TerminalType), Data: r.Terminal})
	if err != nil {
		return e, fmt.Errorf("decode the recorded %s of run %s: %w", r.TerminalType, r.RunID, err)
	}
	return e, nil
}

// settle decides how a run ends that nobody has in hand: the first terminal event that
// gets into the store is the one that is published. The error matches worker.ErrConflict
// when somebody else wrote first.
func (t *Trigger) settle(ctx context.Context, s stored, e events.Event) error {
	next := s.record
	if err := next.end(e); err != nil {
		return err
	}
	if err := t.save(ctx, &s, next); err != nil {
		return err
	}
	t.count(s.record, e)
	t.reach("end decided")
	return t.finish(ctx, s, false)
}

// finish makes a decided end known and removes what is not needed any more. It is safe to
// run any number of times.
func (t *Trigger) finish(ctx context.Context, s stored, repetition bool) error {
	e, err := s.terminal()
	if err != nil {
		return err
	}
	if err := t.tell(ctx, e, repetition, e.Time); err != nil {
		return err
	}
	t.reach("end published")
	if s.canceled() && s.Build != "" && s.Image == "" {
		if err := t.tell(ctx, t.unwanted(s.record, ".cancel"), repetition, e.Time); err != nil {
			return err
		}
		t.reach("build canceled")
	}
	if s.Attempt > 0 && s.Place != t.cfg.Place {
		return t.entrust(ctx, s)
	}
	for attempt := 1; attempt <= s.Attempt; attempt++ {
		if err := t.deps.Runner.Forget(ctx, t.runnerID(s.RunID), attempt); err != nil {
			return fmt.Errorf("forget attempt %d: %w", attempt, err)
		}
	}
	t.reach("run forgotten")
	err = t.close(ctx, s.key)
	t.reach("run closed")
	return err
}

// entrust leaves a run open for a trigger of the place where something may be left of it.
func (t *Trigger) entrust(ctx context.Context, s stored) error {
	if s.Told {
		return nil
	}
	next := s.record
	next.Told = true
	err := t.save(ctx, &s, next)
	t.reach("run entrusted")
	return err
}

// count observes and logs a decided run.
func (t *Trigger) count(r record, e events.Event) {
	outcome, code := "canceled", ""
	switch data := e.Data.(type) {
	case *events.RunCompleted:
		outcome = "completed"
	case *events.RunFailed:
		outcome, code = "failed", data.Error.Code
	}
	t.deps.Metrics.runs.WithLabelValues(outcome, code).Inc()
	t.deps.Log.Info().Str("run_id", r.RunID).Str("outcome", outcome).Str("code", code).Str("image", r.Image).Int("attempt", r.Attempt).
		Int64("duration_ms", time.Since(r.Requested).Milliseconds()).Msg("run finished")
}

// runnerID is what the runner knows a run by.
func (t *Trigger) runnerID(runID string) string {
	if t.cfg.Scope == "" {
		return events.RunKey(runID)
	}
	return events.RunKey(t.cfg.Scope + "\n" + runID)
}

// conclude ends the attempt by how the process ended.
func (x *execution) conclude(result run.Result, err error) {
	t, cause := x.trigger, context.Cause(x.ctx)
	x.announcing.Wait()
	x.stop()
	ctx, cancel := detached(x.ctx)
	defer cancel()
	if !result.Started.IsZero() && !x.announced {
		if told := x.announce(ctx, result.Started); told != nil {
			x.leave(told)
			return
		}
	}
	t.reach("process ended")
	x.observeDuration(result, err)
	result.Results = x.showable(result.Results)
	kind := builder.KindOf(err)
	switch {
	case err == nil && result.ExitCode == 0:
		x.settle(ctx, t.completed(x.stored.record, result))
	case err == nil:
		x.settle(ctx, t.failed(x.stored.record, exited(result), failure{result: &result, log: x.tail.Lines()}))
	case errors.Is(cause, builder.ErrLeaseLost), kind == builder.KindLeaseLost:
		x.leave(err)
	case errors.Is(cause, errCanceled):
		x.settle(ctx, t.canceled(x.stored.record, x.reason()))
	case errors.Is(cause, errTimeout):
		x.settle(ctx, t.failed(x.stored.record, builder.Errorf(builder.KindTimeout, "running", "the process ran longer than the run may"), failure{log: x.tail.Lines()}))
	case errors.Is(cause, builder.ErrShutdown), kind == builder.KindInterrupted:
		x.handOver(ctx, errors.Is(cause, builder.ErrShutdown))
	case kind == builder.KindUnavailable && x.stored.Tries+1 < t.cfg.MaxAttempts:
		x.retry(ctx, err)
	default:
		x.settle(ctx, t.failed(x.stored.record, x.clean(err), failure{log: x.tail.Lines()}))
	}
}

// showable is what the function handed back, without secrets.
func (x *execution) showable(raw json.RawMessage) json.RawMessage {
	clean := json.RawMessage(x.hidden.Text(string(raw)))
	if !json.Valid(clean) {
		return nil
	}
	return clean
}

func exited(r run.Result) error {
	return builder.Errorf(KindRunFailed, "running", "the process ended with exit code %d", r.ExitCode)
}

// reason is why the run is canceled, as the newest record says.
func (x *execution) reason() string {
	if known, ok := x.trigger.known(x.stored.key); ok && known.Cancel != nil {
		return known.Cancel.Reason
	}
	return ""
}

// settle decides how the run ends, while it is in hand.
func (x *execution) settle(ctx context.Context, e events.Event) {
	t := x.trigger
	_ = x.log.Close()
	var broken error
	err := x.update(ctx, func(r *record) { broken = r.end(e) })
	if err = errors.Join(err, broken); err != nil {
		x.leave(err)
		return
	}
	t.count(x.stored.record, e)
	t.reach("end decided")
	if err := t.finish(ctx, x.stored, x.takeover); err != nil {
		x.note.Warn().Err(err).Msg("cannot finish a run yet")
	}
}

// leave does nothing more: somebody else has the run, or will, when the lease is over.
func (x *execution) leave(err error) {
	_ = x.log.Leave()
	x.note.Warn().Err(err).Msg("the run is left to whoever has it next")
}

// handOver lets another trigger attach: at once, or where the runner ended by itself a
// little later.
func (x *execution) handOver(ctx context.Context, stopping bool) {
	_ = x.log.Leave()
	err := x.update(ctx, func(r *record) {
		if r.free(); !stopping {
			r.NotBefore = time.Now().UTC().Add(x.trigger.cfg.RetryDelay)
		}
	})
	if err != nil {
		x.note.Warn().Err(err).Msg("the run stays claimed until its lease ends")
		return
	}
	x.note.Info().Msg("the run goes on; another trigger attaches to it")
	x.trigger.reach("run handed over")
}

// retry lets the run start again, as the next attempt.
func (x *execution) retry(ctx context.Context, cause error) {
	t, attempt := x.trigger, x.stored.Attempt
	_ = x.log.Close()
	delay := worker.Delay(x.stored.Tries+1, t.cfg.RetryDelay, t.cfg.RetryMaxDelay)
	err := x.update(ctx, func(r *record) {
		r.free()
		r.broke(x.clean(cause))
		r.State, r.Started, r.NotBefore = stateReady, time.Time{}, time.Now().UTC().Add(delay)
	})
	if err != nil {
		x.note.Warn().Err(err).Msg("the run stays claimed until its lease ends")
		return
	}
	t.deps.Metrics.retries.Inc()
	t.reach("try counted")
	x.note.Warn().Err(cause).Int("try", x.stored.Tries).Msg("the run could not be executed and is tried again")
	// Only now: what is forgotten could be started again under the same attempt.
	if err := t.deps.Runner.Forget(ctx, t.runnerID(x.stored.RunID), attempt); err != nil {
		x.note.Warn().Err(err).Msg("remains of an attempt are removed when the run ends")
	}
}
