package worker

import (
	"context"
	"fmt"
	"time"

	"kiln/builder"
	"kiln/events"
)

// leave answers a request that needs no build. Where Nuclio builds the function and can
// be told so, the request is answered once Nuclio has deployed it.
func (w *Worker) leave(ctx context.Context, t *task, request builder.Request) (*events.BuildCompleted, error) {
	t.image = request.Decision.Image
	completed := &events.BuildCompleted{Outcome: events.OutcomeNotNeeded, Reason: request.Decision.Reason, Image: t.image}
	if request.Nuclio == nil || w.deps.Nuclio == nil {
		return completed, nil
	}
	f, redactor, err := w.deps.Builder.Nuclio(ctx, request)
	if err != nil {
		return nil, err
	}
	t.redactor = redactor
	status, err := w.deps.Nuclio.Deploy(ctx, t.id, f)
	for _, line := range status.Log {
		fmt.Fprintln(&t.tail, redactor.Text(line))
	}
	if err != nil {
		return nil, err
	}
	if !status.Done {
		return nil, w.unfinished(t, status.State, w.deps.Builder.Timeout(request))
	}
	if status.Image != "" {
		t.image, completed.Image = status.Image, status.Image
	}
	completed.Reason = fmt.Sprintf("No build is needed: Nuclio has built the image and deployed the function as %s.", f.Name)
	return completed, nil
}

// unfinished comes back later, which takes no slot meanwhile, until the time is over.
func (w *Worker) unfinished(t *task, state string, limit time.Duration) error {
	took := time.Since(t.started)
	if took >= limit {
		return builder.Errorf(builder.KindTimeout, "waiting for Nuclio", "the function was not deployed within %s; its state is %q", limit, state)
	}
	return &busyError{owner: "Nuclio", wait: min(max(took/10, w.cfg.RetryDelay), 10*w.cfg.RetryDelay, limit-took)}
}
