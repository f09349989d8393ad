package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/events"
)

// maxCauses bounds how many errors of earlier tries are kept.
const maxCauses = 10

// bury publishes build.dead after a request failed for reasons of ours, so that it can
// be published again when they are gone. Other outcomes need nothing.
func (w *Worker) bury(ctx context.Context, t *task, e events.Event, repetition bool) verdict {
	failed, ok := e.Data.(*events.BuildFailed)
	if !ok || failed.Error.Code != string(builder.KindUnavailable) {
		return verdict{answer: answerAck}
	}
	if t.request == nil {
		raw, err := w.deps.Queue.Read(ctx, t.sequence)
		switch {
		case errors.Is(err, ErrNotFound):
			t.log.Warn().Msg("the request that failed is not stored any more and cannot be published again")
			return verdict{answer: answerAck}
		case err != nil:
			return w.stalled(ctx, t, fmt.Errorf("read the request: %w", err))
		}
		t.request = w.newTask(raw, t.sequence).request
	}
	dead := t.newEvent(events.TypeBuildDead, &events.BuildDead{
		RequestID: t.id, Function: t.subject, Error: failed.Error, Causes: t.record.value.Causes, Attempts: t.record.value.Tries,
		Sequence: t.sequence, Request: *t.request, Failed: e.Time,
	}, e.Time)
	if repetition {
		out, err := w.deps.Publisher.Published(ctx, dead.Type, dead.ID, e.Time.Add(-time.Minute))
		if err != nil {
			return w.stalled(ctx, t, fmt.Errorf("look for %s: %w", dead.ID, err))
		}
		if out {
			return verdict{answer: answerAck}
		}
	}
	if err := w.deps.Publisher.Publish(ctx, dead); err != nil {
		return w.stalled(ctx, t, fmt.Errorf("publish %s: %w", dead.ID, err))
	}
	w.reach("dead published")
	return verdict{answer: answerAck}
}
