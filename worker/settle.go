package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// stalled answers when not even the ledger can be read or written.
func (w *Worker) stalled(ctx context.Context, t *task, err error) verdict {
	switch decide(ctx, err, false) {
	case fateAbandon:
		return verdict{answer: answerNone}
	case fateHandBack:
		return verdict{answer: answerNak, code: string(builder.KindInterrupted)}
	default:
		t.log.Warn().Err(err).Msg("cannot use the ledger or the event stream")
		return verdict{answer: answerNak, delay: w.cfg.RetryDelay, code: string(builder.KindUnavailable)}
	}
}

// fail decides the request as failed. What broke is counted like the tries before it.
func (w *Worker) fail(ctx context.Context, t *task, err error) verdict {
	r := &t.record.value
	cause := t.failure(err, r.Tries, r.Causes)
	r.Tries, r.Causes = r.Tries+1, lastN(append(r.Causes, t.clean(err.Error())), maxCauses)
	return w.settle(ctx, t, t.failedEvent(cause, t.tail.Lines()))
}

// settle decides the request: the first terminal event that gets into the ledger is
// the one that is published.
func (w *Worker) settle(ctx context.Context, t *task, e events.Event) verdict {
	ctx, cancel := detached(ctx)
	defer cancel()
	decided, err := newTerminal(e)
	for err == nil {
		next := t.record.value
		next.RequestID, next.Content, next.Started, next.Terminal = t.id, t.content, t.started, decided
		err = store(ctx, w.deps.Ledger, &t.record, next)
		if err == nil {
			w.observe(t, e)
			w.reach("outcome decided")
			return w.announce(ctx, t, *decided, false)
		}
		if !errors.Is(err, ErrConflict) {
			break
		}
		if t.record, err = load[requestRecord](ctx, w.deps.Ledger, requestKey(t.id)); err != nil {
			break
		}
		if t.record.value.Terminal != nil {
			return w.announce(ctx, t, *t.record.value.Terminal, true)
		}
		if t.record.value.cancels(t.sequence) && e.Type != events.TypeBuildCanceled {
			return w.settle(ctx, t, t.canceledEvent(t.record.value.Cancel.Reason, ""))
		}
	}
	return w.stalled(ctx, t, err)
}

// announce publishes the decided event and only then lets the request go. A
// repetition looks first whether the event is out: the stream recognises
// duplicates for a limited time only.
func (w *Worker) announce(ctx context.Context, t *task, decided terminal, repetition bool) verdict {
	ctx, cancel := detached(ctx)
	defer cancel()
	e, err := decided.event()
	if err != nil {
		return w.stalled(ctx, t, err)
	}
	if repetition {
		out, err := w.deps.Publisher.Published(ctx, e.Type, e.ID, e.Time.Add(-time.Minute))
		if err != nil {
			return w.stalled(ctx, t, fmt.Errorf("look for %s: %w", e.ID, err))
		}
		if out {
			return w.bury(ctx, t, e, true)
		}
	}
	if err := w.deps.Publisher.Publish(ctx, e); err != nil {
		return w.stalled(ctx, t, fmt.Errorf("publish %s: %w", e.ID, err))
	}
	w.reach("outcome published")
	return w.bury(ctx, t, e, repetition)
}

// conclude ends a request of the backlog by the result of its build, or by what was
// decided before. It returns when to try again, zero if the request is finished.
func (w *Worker) conclude(ctx context.Context, t *task, result buildRecord) (again time.Duration) {
	return w.finish(ctx, t, func() verdict { return w.close(ctx, t, result) })
}

// finish decides a request of the backlog, unless that was done before, and takes it out.
func (w *Worker) finish(ctx context.Context, t *task, decide func() verdict) (again time.Duration) {
	var v verdict
	if err := w.recall(ctx, t); err != nil {
		v = w.stalled(ctx, t, err)
	} else if ended, before := w.ended(ctx, t); ended {
		v = before
	} else {
		v = decide()
	}
	if v.answer != answerAck {
		return max(v.delay, w.cfg.RetryDelay)
	}
	if err := w.forget(ctx, t.sequence); err != nil {
		t.log.Warn().Err(err).Msg("cannot take the request out of the backlog")
		return w.cfg.RetryDelay
	}
	return 0
}

// close decides a request by the result of its build.
func (w *Worker) close(ctx context.Context, t *task, result buildRecord) verdict {
	t.attempt, t.buildMS = result.Attempt, 0
	own := result.RequestID == t.id
	if own {
		t.buildMS = result.BuildMS
	}
	if result.Started.After(t.started) {
		t.started = result.Started
	}
	if result.Status == statusFailed {
		t.record.value.Tries, t.record.value.Causes = result.Tries, result.Causes
		return w.settle(ctx, t, t.failedEvent(result.Failure, result.LogTail))
	}
	if !own {
		t.reason = fmt.Sprintf("The request shared the build of request %s.", result.RequestID)
	}
	completed, err := w.provide(ctx, t, result)
	switch decide(ctx, err, t.record.value.Tries+1 >= w.cfg.MaxAttempts) {
	case fateRetry:
		return w.retry(ctx, t, err)
	case fateAbandon, fateHandBack, fateWait:
		return w.stalled(ctx, t, err)
	case fateSettle:
	}
	if err != nil {
		return w.fail(ctx, t, err)
	}
	return w.settle(ctx, t, t.completedEvent(completed))
}

// provide moves the user's tag to a finished build.
func (w *Worker) provide(ctx context.Context, t *task, done buildRecord) (*events.BuildCompleted, error) {
	outcome := events.OutcomeReused
	if t.attempt, t.buildMS = done.Attempt, 0; done.RequestID == t.id {
		// Built for this very request, now or before an interruption.
		outcome, t.buildMS = events.OutcomeBuilt, done.BuildMS
	}
	note, err := w.tag(ctx, t, done)
	if err != nil {
		return nil, err
	}
	return &events.BuildCompleted{
		BuildID: t.plan.BuildID, Outcome: outcome, Reason: t.reason + note, Image: t.image,
		Digest: done.Digest, ImageRef: w.deps.Builder.ImageRef(t.plan, done.Digest),
		Base: t.base(), Attempt: done.Attempt, Engine: t.engine,
	}, nil
}

// forget takes a finished request out of the backlog, whoever changed its entry last.
func (w *Worker) forget(ctx context.Context, sequence uint64) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	key := backlog.Key(sequence)
	revision, known := w.look(sequence)
	for {
		if !known {
			_, at, err := w.deps.Backlog.Get(ctx, key)
			if errors.Is(err, ErrNotFound) {
				w.dropped(sequence, revision+1)
				return nil
			}
			if err != nil {
				return fmt.Errorf("read entry %s: %w", key, err)
			}
			revision = at
		}
		err := w.deps.Backlog.Delete(ctx, key, revision)
		if err == nil {
			w.dropped(sequence, revision+1)
			w.reach("entry deleted")
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("delete entry %s: %w", key, err)
		}
		known = false
	}
}

// observe counts and logs a decided request.
func (w *Worker) observe(t *task, e events.Event) {
	outcome, code, digest := "failed", "", ""
	switch data := e.Data.(type) {
	case *events.BuildCompleted:
		outcome, digest = string(data.Outcome), data.Digest
	case *events.BuildFailed:
		code = data.Error.Code
	case *events.BuildCanceled:
		outcome = "canceled"
	}
	w.deps.Metrics.requests.WithLabelValues(outcome, code).Inc()
	t.log.Info().Str("outcome", outcome).Str("code", code).Str("image", t.image).Str("digest", digest).
		Int64("duration_ms", time.Since(t.started).Milliseconds()).Msg("request finished")
}

// detached returns a context that outlives a stop of the worker, bounded in time.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), answerTimeout, errors.New("recording the outcome took too long"))
}
