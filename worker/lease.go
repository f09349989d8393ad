package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kiln/builder"
)

// every is Hold of what, logged and counted.
func (w *Worker) every(ctx context.Context, what string, lost context.CancelCauseFunc, renew func(context.Context) error) (stop func()) {
	return Hold(ctx, w.cfg.Lease, renew, func(err error) {
		w.deps.Metrics.leaseErrors.Inc()
		w.deps.Log.Warn().Err(err).Str("lease", what).Msg("cannot renew")
	}, lost)
}

// claim takes the build for this worker. The entry's revision is then the fencing
// token: every later write of the record names it. A build that another worker runs is
// taken only if its record did not change for a whole lease of this worker's own clock.
func (w *Worker) claim(ctx context.Context, e *entry[buildRecord], requestID string) error {
	before := e.value
	next := buildRecord{
		Status: statusBuilding, Attempt: before.Attempt + 1, Owner: w.cfg.Name, RequestID: requestID,
		Started: time.Now().UTC(), ExpiresAt: time.Now().UTC().Add(w.cfg.Lease),
	}
	if !before.finished() {
		next.Tries, next.Lost, next.Causes, next.Class = before.Tries, before.Lost, before.Causes, before.Class
	}
	if before.Status == statusBuilding {
		w.mu.Lock()
		stale := w.view.Stale(strings.TrimPrefix(e.key, buildPrefix), e.revision, time.Now())
		w.mu.Unlock()
		if !stale {
			return &busyError{owner: before.Owner}
		}
		next.Lost++
	}
	err := store(ctx, w.deps.Ledger, e, next)
	if errors.Is(err, ErrConflict) {
		return &busyError{owner: "another worker"}
	}
	if err != nil {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "claiming the build", Err: err}
	}
	return nil
}

// hold renews the claim until stop is called, in the name of the request that leads.
func (w *Worker) hold(ctx context.Context, x *execution, e *entry[buildRecord], lost context.CancelCauseFunc) (stop func()) {
	return w.every(ctx, "build", lost, func(ctx context.Context) error {
		next := e.value
		leading, _ := w.leader(x)
		next.RequestID = leading.RequestID
		next.ExpiresAt = time.Now().UTC().Add(w.cfg.Lease)
		return w.storeOwn(ctx, e, next)
	})
}

// storeOwn writes the record of a build that this worker claimed. Where an earlier write
// got in although it reported an error, the record is still this worker's by owner and
// attempt, and is written over.
func (w *Worker) storeOwn(ctx context.Context, e *entry[buildRecord], next buildRecord) error {
	err := store(ctx, w.deps.Ledger, e, next)
	if !errors.Is(err, ErrConflict) {
		return err
	}
	now, readErr := load[buildRecord](ctx, w.deps.Ledger, e.key)
	if r := now.value; readErr != nil || r.Status != statusBuilding || r.Owner != w.cfg.Name || r.Attempt != e.value.Attempt {
		return err
	}
	e.revision = now.revision
	return store(ctx, w.deps.Ledger, e, next)
}

// vacate ends the claim without a result, so that the build can be claimed at once.
// Change may be nil.
func (w *Worker) vacate(ctx context.Context, e *entry[buildRecord], code builder.Kind, change func(*buildRecord)) error {
	next := e.value
	next.end(statusReleased)
	next.Code = string(code)
	if change != nil {
		change(&next)
	}
	if err := w.storeOwn(ctx, e, next); err != nil {
		return fmt.Errorf("release the build: %w", err)
	}
	w.observeBuild(*e)
	return nil
}

// complete ends the claim with an image.
func (w *Worker) complete(ctx context.Context, e *entry[buildRecord], imageRef string, result builder.Result, requestID string) error {
	next := e.value
	next.end(statusCompleted)
	next.RequestID, next.ImageRef, next.Digest = requestID, imageRef, result.Digest
	next.BuildMS = result.Duration.Milliseconds()
	next.Tries, next.Lost, next.Causes = 0, 0, nil
	return w.conclusion(ctx, e, next)
}

// failBuild ends the claim with a failure of all requests that wait for the build.
func (w *Worker) failBuild(ctx context.Context, t *task, e *entry[buildRecord], cause error, requestID string) error {
	next := e.value
	next.end(statusFailed)
	next.RequestID, next.Code = requestID, string(builder.KindOf(cause))
	next.Failure, next.LogTail = t.failure(cause, next.Tries, next.Causes), t.tail.Lines()
	next.broke(t.clean(cause.Error()))
	next.BuildMS = t.buildMS
	err := w.conclusion(ctx, e, next)
	if err == nil {
		w.observeBuild(*e)
	}
	return err
}

func (w *Worker) conclusion(ctx context.Context, e *entry[buildRecord], next buildRecord) error {
	err := w.storeOwn(ctx, e, next)
	switch {
	case errors.Is(err, ErrConflict):
		return &builder.Error{Kind: builder.KindLeaseLost, Op: "recording the build", Err: err}
	case err != nil:
		return &builder.Error{Kind: builder.KindUnavailable, Op: "recording the build", Err: err}
	}
	return nil
}
