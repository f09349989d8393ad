package trigger

import (
	"cmp"
	"context"
	"errors"

	"kiln/events"
	"kiln/worker"
)

// takeCancel brings one run.cancel to its answer.
func (t *Trigger) takeCancel(ctx context.Context, msg worker.Message) answer {
	e, err := events.Decode(msg.Event())
	wanted, ok := e.Data.(*events.RunCancel)
	if err != nil || !ok {
		t.deps.Log.Warn().Err(err).Uint64("sequence", msg.Sequence()).Msg("a run.cancel cannot be read")
		return answer{}
	}
	c := cancelRecord{Sequence: msg.Sequence(), Reason: cmp.Or(wanted.Reason, "The run was canceled.")}
	for {
		err := t.cancel(ctx, wanted.RunID, c)
		switch {
		case errors.Is(err, worker.ErrConflict):
		case err != nil:
			return t.stalled(events.RunKey(wanted.RunID), err)
		default:
			return answer{}
		}
	}
}

// cancel ends a run wherever it is. One that was requested later is not meant; one that
// was not taken in yet is ended when it is.
func (t *Trigger) cancel(ctx context.Context, runID string, c cancelRecord) error {
	s, err := t.load(ctx, events.RunKey(runID))
	if err != nil {
		return err
	}
	switch {
	case s.State != stateNone && s.Sequence > c.Sequence:
		return nil
	case s.State == stateEnded && s.TerminalType == events.TypeRunCanceled:
		return t.finish(ctx, s, true)
	case s.State == stateEnded:
		t.deps.Log.Info().Str("run_id", runID).Msg("the cancel comes too late")
		return nil
	case s.State == stateWaiting, s.State == stateReady:
		r := s.record
		r.Cancel = &c
		s.Cancel = &c
		return t.settle(ctx, s, t.canceled(r, c.Reason))
	}
	if s.Cancel != nil && s.Cancel.Sequence >= c.Sequence {
		return nil
	}
	next := s.record
	next.RunID, next.Cancel = runID, &c
	if err := t.save(ctx, &s, next); err != nil {
		return err
	}
	t.reach("cancel noted")
	return nil
}
