package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
)

// fulfil brings the request's image about: resolve, plan, reuse or build, tag. A
// repetition finds what an earlier try left in the ledger and goes on from there.
func (w *Worker) fulfil(ctx context.Context, t *task) (*events.BuildCompleted, error) {
	if t.fault != nil {
		return nil, t.fault
	}
	request, err := function.Resolve(w.cfg.Function, Input(t.id, t.request))
	if err != nil {
		return nil, err
	}
	t.subject = events.Function{Project: request.Project, Name: request.Name, Tag: request.Tag}
	t.image = request.UserImage
	if !request.Decision.Build {
		return w.leave(ctx, t, request)
	}
	plan, err := w.deps.Builder.Plan(ctx, request)
	if err != nil {
		return nil, err
	}
	t.planned(plan, w.deps.Builder.EngineName(), w.deps.Builder.Redactor(plan))
	return w.obtain(ctx, t, request)
}

// obtain reuses the finished build of the same contents, or builds, and then moves
// the user's tag to it.
func (w *Worker) obtain(ctx context.Context, t *task, request builder.Request) (*events.BuildCompleted, error) {
	record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(t.plan.BuildID))
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindUnavailable, Op: "looking for a finished build", Err: err}
	}
	reason, reusable, err := w.reusable(ctx, t, request, record.value)
	if err != nil {
		return nil, err
	}
	outcome := events.OutcomeReused
	if !reusable {
		if err := w.execute(ctx, t, &record); err != nil {
			return nil, err
		}
		outcome = events.OutcomeBuilt
	}
	done := record.value
	t.attempt, t.buildMS = done.Attempt, 0
	if done.RequestID == t.id {
		// Built for this very request, now or before an interruption.
		outcome, t.buildMS = events.OutcomeBuilt, done.BuildMS
	}
	if err := w.deps.Builder.Tag(ctx, t.plan, done.ImageRef); err != nil {
		return nil, err
	}
	return &events.BuildCompleted{
		BuildID: t.plan.BuildID, Outcome: outcome, Reason: reason, Image: t.image,
		Digest: done.Digest, ImageRef: w.deps.Builder.ImageRef(t.plan, done.Digest),
		Base: t.base(), Attempt: done.Attempt, Engine: t.engine,
	}, nil
}

// reusable says whether the recorded build serves the request, and in a sentence
// why or why not.
func (w *Worker) reusable(ctx context.Context, t *task, request builder.Request, r buildRecord) (reason string, ok bool, err error) {
	if r.Status != statusCompleted {
		return request.Decision.Reason, false, nil
	}
	if request.Rebuild && r.RequestID != t.id {
		return "A new build was asked for, although an identical one is finished.", false, nil
	}
	err = w.deps.Builder.Verify(ctx, t.plan, r.ImageRef)
	switch {
	case err == nil && r.RequestID == t.id:
		return request.Decision.Reason, true, nil
	case err == nil:
		return fmt.Sprintf("An identical build was finished at %s (request %s); its image is used.",
			r.Finished.Format(time.RFC3339), r.RequestID), true, nil
	case errors.Is(err, builder.ErrImageMissing):
		return "An identical build was finished before, but its image is gone from the registry.", false, nil
	case builder.KindOf(err) == builder.KindUnavailable:
		return "", false, err
	default:
		return "An identical build was finished before, but its image cannot be read any more.", false, nil
	}
}

// execute claims the build and runs it.
func (w *Worker) execute(ctx context.Context, t *task, record *entry[buildRecord]) error {
	if err := w.claim(ctx, record, t.id); err != nil {
		return err
	}
	t.attempt = record.value.Attempt
	t.plan.Attempt = t.attempt
	t.log = t.log.With().Int("attempt", t.attempt).Logger()

	result, err := w.run(ctx, t, record)
	end, cancel := detached(ctx)
	defer cancel()
	if err == nil {
		return w.complete(end, record, w.deps.Builder.ImageRef(t.plan, result.Digest), result)
	}
	if kind := builder.KindOf(err); kind != builder.KindLeaseLost {
		if err := w.release(end, record, kind); err != nil {
			t.log.Warn().Err(err).Msg("the build stays claimed until its lease ends")
		}
	}
	return err
}

// run executes the claimed build under its lease, with its log.
func (w *Worker) run(ctx context.Context, t *task, record *entry[buildRecord]) (builder.Result, error) {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	stop := w.hold(ctx, record, lost)
	defer stop()

	if err := w.deps.Publisher.Publish(ctx, t.startedEvent(w.cfg.Name, w.cfg.LogSubject(t.plan.BuildID))); err != nil {
		return builder.Result{}, &builder.Error{Kind: builder.KindUnavailable, Op: "publishing build.started", Err: err}
	}
	t.log.Info().Str("engine", t.engine).Str("image", t.plan.Target).Str("base", t.plan.Base.Ref).Msg("build started")
	logs := w.deps.Logs.Open(t.plan.BuildID, t.attempt)
	defer logs.Close()
	out := io.MultiWriter(&t.tail, logs)

	began := time.Now()
	result, err := w.deps.Builder.Build(ctx, t.plan, out)
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

// observe counts and logs a decided request.
func (w *Worker) observe(t *task, e events.Event) {
	outcome, code, digest := "failed", "", ""
	switch data := e.Data.(type) {
	case *events.BuildCompleted:
		outcome, digest = string(data.Outcome), data.Digest
	case *events.BuildFailed:
		code = data.Error.Code
	}
	w.deps.Metrics.requests.WithLabelValues(outcome, code).Inc()
	t.log.Info().Str("outcome", outcome).Str("code", code).Str("image", t.image).Str("digest", digest).
		Int64("duration_ms", time.Since(t.started).Milliseconds()).Msg("request finished")
}
