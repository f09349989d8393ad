package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/events"
)

// answerTimeout bounds what has to be written after the work ended, also when the
// worker is stopping: ledger record, terminal event, answer to the queue.
const answerTimeout = 30 * time.Second

// handle brings one delivery to its answer.
func (w *Worker) handle(work context.Context, msg Message) {
	w.deps.Metrics.inFlight.Inc()
	defer w.deps.Metrics.inFlight.Dec()

	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	stop := w.keepAlive(ctx, msg, cancel)
	defer stop()

	t := w.newTask(msg)
	ctx = t.log.WithContext(ctx)
	v := w.process(ctx, t)

	end, release := context.WithTimeoutCause(context.WithoutCancel(ctx), answerTimeout, errors.New("answering took too long"))
	defer release()
	var err error
	switch v.answer {
	case answerAck:
		err = msg.Ack(end)
	case answerNak:
		w.deps.Metrics.retries.WithLabelValues(v.code).Inc()
		t.log.Info().Str("code", v.code).Dur("retry_in", v.delay).Msg("request handed back")
		err = msg.Nak(end, v.delay)
	case answerNone:
		t.log.Warn().Msg("request left to whoever owns it now")
	}
	if err != nil {
		t.log.Warn().Err(err).Msg("cannot answer the queue; the request will come again")
	}
}

// keepAlive resets the message's redelivery timer until stop is called. When that
// fails for a whole lease the message may be somebody else's, and ctx is canceled.
func (w *Worker) keepAlive(ctx context.Context, msg Message, lost context.CancelCauseFunc) (stop func()) {
	return w.every(ctx, "message", lost, msg.InProgress)
}

// process does everything short of answering the queue. It is safe to run any
// number of times for the same request.
func (w *Worker) process(ctx context.Context, t *task) verdict {
	record, err := load[requestRecord](ctx, w.deps.Ledger, requestKey(t.id))
	if err == nil && record.revision > 0 && record.value.Content != t.content {
		t.conflict()
		record, err = load[requestRecord](ctx, w.deps.Ledger, requestKey(t.id))
	}
	if err != nil {
		return w.stalled(ctx, t, err)
	}
	if record.value.Terminal != nil {
		return w.announce(ctx, t, *record.value.Terminal, true)
	}
	if !record.value.Started.IsZero() {
		t.started = record.value.Started
	}

	completed, err := w.fulfil(ctx, t)
	lastTry := record.value.Tries+1 >= w.cfg.MaxAttempts
	switch decide(ctx, err, lastTry) {
	case fateAbandon:
		return verdict{answer: answerNone}
	case fateHandBack:
		return verdict{answer: answerNak, code: string(builder.KindInterrupted)}
	case fateWait:
		return w.wait(ctx, t, record, err)
	case fateRetry:
		return w.retry(ctx, t, record, err)
	case fateSettle:
	}
	if err != nil {
		return w.settle(ctx, t, record, t.failedEvent(err, record.value))
	}
	return w.settle(ctx, t, record, t.completedEvent(completed))
}

// retry counts the try and hands the request back for later.
func (w *Worker) retry(ctx context.Context, t *task, record entry[requestRecord], cause error) verdict {
	next := record.value
	next.RequestID, next.Content, next.Started = t.id, t.content, t.started
	next.Tries++
	next.Causes = lastN(append(next.Causes, t.clean(cause.Error())), 10)
	t.log.Warn().Err(cause).Int("try", next.Tries).Msg("request could not be served yet")
	end, cancel := detached(ctx)
	defer cancel()
	if err := record.store(end, w.deps.Ledger, next); err != nil {
		t.log.Warn().Err(err).Msg("cannot count the try")
	}
	return verdict{answer: answerNak, delay: w.delay(next.Tries), code: string(builder.KindUnavailable)}
}

// wait hands the request back until somebody else is done with its work. When it was
// handled first is kept: a limit of time begins there.
func (w *Worker) wait(ctx context.Context, t *task, record entry[requestRecord], cause error) verdict {
	busy, _ := errors.AsType[*busyError](cause)
	if record.value.Started.IsZero() {
		next := record.value
		next.RequestID, next.Content, next.Started = t.id, t.content, t.started
		end, cancel := detached(ctx)
		defer cancel()
		if err := record.store(end, w.deps.Ledger, next); err != nil {
			t.log.Warn().Err(err).Msg("cannot record the start")
		}
	}
	return verdict{answer: answerNak, delay: busy.wait, code: "busy"}
}

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

// settle decides the request: the first terminal event that gets into the ledger is
// the one that is published.
func (w *Worker) settle(ctx context.Context, t *task, record entry[requestRecord], e events.Event) verdict {
	ctx, cancel := detached(ctx)
	defer cancel()
	decided, err := newTerminal(e)
	for err == nil {
		next := record.value
		next.RequestID, next.Content, next.Started, next.Terminal = t.id, t.content, t.started, decided
		err = record.store(ctx, w.deps.Ledger, next)
		if err == nil {
			w.observe(t, e)
			return w.announce(ctx, t, *decided, false)
		}
		if !errors.Is(err, ErrConflict) {
			break
		}
		if record, err = load[requestRecord](ctx, w.deps.Ledger, record.key); err == nil && record.value.Terminal != nil {
			return w.announce(ctx, t, *record.value.Terminal, true)
		}
	}
	return w.stalled(ctx, t, err)
}

// announce publishes the decided event and only then lets the message go. A
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
			return verdict{answer: answerAck}
		}
	}
	if err := w.deps.Publisher.Publish(ctx, e); err != nil {
		return w.stalled(ctx, t, fmt.Errorf("publish %s: %w", e.ID, err))
	}
	return verdict{answer: answerAck}
}

// detached returns a context that outlives a stop of the worker, bounded in time.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), answerTimeout, errors.New("recording the outcome took too long"))
}
