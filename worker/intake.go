package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
)

// answerTimeout bounds what has to be written after the work ended, also when the
// worker is stopping: ledger record, terminal event, answer to the queue.
const answerTimeout = 30 * time.Second

// consume is Consume, logged and counted.
func (w *Worker) consume(ctx context.Context, q Queue, handle func(Message)) {
	Consume(ctx, q, func(err error, retryIn time.Duration) {
		w.deps.Metrics.fetchErrors.Inc()
		w.deps.Log.Warn().Err(err).Dur("retry_in", retryIn).Msg("cannot fetch messages")
	}, handle)
}

// takeIn brings one delivery of a request to its answer: the request is finished, or
// in the backlog, or comes again.
func (w *Worker) takeIn(work context.Context, msg Message) {
	w.deps.Metrics.inFlight.Inc()
	defer w.deps.Metrics.inFlight.Dec()
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	stop := w.every(ctx, "message", cancel, msg.InProgress)
	defer stop()

	t := w.newTask(msg.Event(), msg.Sequence())
	w.deps.Metrics.queueTime.Observe(max(0, t.started.Sub(t.requested).Seconds()))
	ctx = t.log.WithContext(ctx)
	w.answer(ctx, t, msg, w.handle(ctx, t))
}

func (w *Worker) answer(ctx context.Context, t *task, msg Message, v verdict) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), answerTimeout, errors.New("answering took too long"))
	defer cancel()
	var err error
	switch v.answer {
	case answerAck:
		err = msg.Ack(ctx)
	case answerNak:
		w.deps.Metrics.retries.WithLabelValues(v.code).Inc()
		t.log.Info().Str("code", v.code).Dur("retry_in", v.delay).Msg("request handed back")
		err = msg.Nak(ctx, v.delay)
	case answerNone:
		t.log.Warn().Msg("request left to whoever owns it now")
	}
	if err != nil {
		t.log.Warn().Err(err).Msg("cannot answer the queue; the request will come again")
	}
	w.reach("intake answered")
}

// handle does everything short of answering the queue. It is safe to run any number of
// times for the same request.
func (w *Worker) handle(ctx context.Context, t *task) verdict {
	err := w.recall(ctx, t)
	if err != nil {
		return w.stalled(ctx, t, err)
	}
	if ended, v := w.ended(ctx, t); ended {
		return v
	}
	completed, err := w.fulfil(ctx, t)
	if err == nil && completed == nil {
		return verdict{answer: answerAck} // in the backlog
	}
	lastTry := t.record.value.Tries+1 >= w.cfg.MaxAttempts
	switch decide(ctx, err, lastTry) {
	case fateAbandon:
		return verdict{answer: answerNone}
	case fateHandBack:
		return verdict{answer: answerNak, code: string(builder.KindInterrupted)}
	case fateWait:
		return w.wait(ctx, t, err)
	case fateRetry:
		return w.retry(ctx, t, err)
	case fateSettle:
	}
	if err != nil {
		return w.fail(ctx, t, err)
	}
	return w.settle(ctx, t, t.completedEvent(completed))
}

// recall reads what the ledger knows of the request.
func (w *Worker) recall(ctx context.Context, t *task) error {
	record, err := load[requestRecord](ctx, w.deps.Ledger, requestKey(t.id))
	if err == nil && record.value.Content != "" && record.value.Content != t.content {
		t.conflict()
		record, err = load[requestRecord](ctx, w.deps.Ledger, requestKey(t.id))
	}
	if t.record = record; !record.value.Started.IsZero() {
		t.started = record.value.Started
	}
	return err
}

// ended answers a request that was decided before or that is canceled.
func (w *Worker) ended(ctx context.Context, t *task) (bool, verdict) {
	if decided := t.record.value.Terminal; decided != nil {
		return true, w.announce(ctx, t, *decided, true)
	}
	if t.record.value.cancels(t.sequence) {
		return true, w.settle(ctx, t, t.canceledEvent(t.record.value.Cancel.Reason, ""))
	}
	return false, verdict{}
}

// fulfil brings the request's image about, if that can be done without building: then
// the result is not nil. Else the request is in the backlog afterwards.
func (w *Worker) fulfil(ctx context.Context, t *task) (*events.BuildCompleted, error) {
	if t.fault != nil {
		return nil, t.fault
	}
	request, err := w.resolve(t)
	if err != nil {
		return nil, err
	}
	if !request.Decision.Build {
		return w.leave(ctx, t, request)
	}
	if err := w.plan(ctx, t, request); err != nil {
		return nil, err
	}
	record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(t.plan.BuildID))
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindUnavailable, Op: "looking for a finished build", Err: err}
	}
	w.observeBuild(record)
	reusable, err := w.reusable(ctx, t, record.value)
	if err != nil {
		return nil, err
	}
	if reusable {
		return w.provide(ctx, t, record.value)
	}
	return nil, w.enqueue(ctx, t, record)
}

func (w *Worker) resolve(t *task) (builder.Request, error) {
	request, err := function.Resolve(w.cfg.Function, Input(t.id, t.request))
	if err != nil {
		return request, err
	}
	t.subject = events.Function{Project: request.Project, Name: request.Name, Tag: request.Tag}
	t.image, t.reason, t.rebuild = request.UserImage, request.Decision.Reason, request.Rebuild
	return request, nil
}

func (w *Worker) plan(ctx context.Context, t *task, request builder.Request) error {
	plan, err := w.deps.Builder.Plan(ctx, request)
	if err != nil {
		return err
	}
	t.planned(plan, w.deps.Builder.EngineName(), w.deps.Builder.Redactor(plan))
	return nil
}

// reusable says whether the recorded build serves the request, and gives the task the
// reason, a sentence, why or why not.
func (w *Worker) reusable(ctx context.Context, t *task, r buildRecord) (bool, error) {
	if r.Status != statusCompleted {
		return false, nil
	}
	if t.rebuild && r.RequestID != t.id {
		t.reason = "A new build was asked for, although an identical one is finished."
		return false, nil
	}
	err := w.deps.Builder.Verify(ctx, t.plan, r.ImageRef)
	switch {
	case err == nil && r.RequestID == t.id:
		return true, nil
	case err == nil:
		t.reason = fmt.Sprintf("An identical build was finished at %s (request %s); its image is used.",
			r.Finished.Format(time.RFC3339), r.RequestID)
		return true, nil
	case errors.Is(err, builder.ErrImageMissing):
		t.reason = "An identical build was finished before, but its image is gone from the registry."
		return false, nil
	case builder.KindOf(err) == builder.KindUnavailable:
		return false, err
	default:
		t.reason = "An identical build was finished before, but its image cannot be read any more."
		return false, nil
	}
}

// retry counts the try and hands the request back for later.
func (w *Worker) retry(ctx context.Context, t *task, cause error) verdict {
	next := t.record.value
	next.RequestID, next.Content, next.Started = t.id, t.content, t.started
	next.Tries++
	next.Causes = lastN(append(next.Causes, t.clean(cause.Error())), maxCauses)
	t.log.Warn().Err(cause).Int("try", next.Tries).Msg("request could not be served yet")
	end, cancel := detached(ctx)
	defer cancel()
	if err := store(end, w.deps.Ledger, &t.record, next); err != nil {
		t.log.Warn().Err(err).Msg("cannot count the try")
	}
	return verdict{answer: answerNak, delay: w.delay(next.Tries), code: string(builder.KindUnavailable)}
}

// wait hands the request back until somebody else is done with its work. When it was
// handled first is kept: a limit of time begins there.
func (w *Worker) wait(ctx context.Context, t *task, cause error) verdict {
	busy, _ := errors.AsType[*busyError](cause)
	if t.record.value.Started.IsZero() {
		next := t.record.value
		next.RequestID, next.Content, next.Started = t.id, t.content, t.started
		end, cancel := detached(ctx)
		defer cancel()
		if err := store(end, w.deps.Ledger, &t.record, next); err != nil {
			t.log.Warn().Err(err).Msg("cannot record the start")
		}
	}
	return verdict{answer: answerNak, delay: busy.wait, code: "busy"}
}
