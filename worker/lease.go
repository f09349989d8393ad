package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kiln/builder"
)

// every runs renew every third of a lease until stop is called, which waits for a
// renewal under way. When no renewal succeeded for two thirds of a lease, or one
// says that the lease is somebody else's, lost is called with ErrLeaseLost: early
// enough to stop before the lease ends.
func (w *Worker) every(ctx context.Context, what string, lost context.CancelCauseFunc, renew func(context.Context) error) (stop func()) {
	interval := w.cfg.Lease / 3
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		renewed := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			began := time.Now()
			attempt, release := context.WithTimeoutCause(ctx, interval, errors.New("renewal took too long"))
			err := renew(attempt)
			release()
			switch {
			case err == nil:
				renewed = began
				continue
			case ctx.Err() != nil:
				return
			}
			w.deps.Metrics.leaseErrors.Inc()
			w.deps.Log.Warn().Err(err).Str("lease", what).Msg("cannot renew")
			if errors.Is(err, ErrConflict) || time.Since(renewed) >= 2*interval {
				lost(builder.ErrLeaseLost)
				return
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// claim takes the build for this worker. The entry's revision is then the fencing
// token: every later write of the record names it.
func (w *Worker) claim(ctx context.Context, e *entry[buildRecord], requestID string) error {
	now := time.Now().UTC()
	if r := e.value; r.Status == statusBuilding && now.Before(r.ExpiresAt) {
		return &busyError{owner: r.Owner, wait: min(r.ExpiresAt.Sub(now), 2*time.Second)}
	}
	err := e.store(ctx, w.deps.Ledger, buildRecord{
		Status: statusBuilding, Attempt: e.value.Attempt + 1, Owner: w.cfg.Name,
		ExpiresAt: now.Add(w.cfg.Lease), RequestID: requestID, Started: now,
	})
	if errors.Is(err, ErrConflict) {
		return &busyError{owner: "another worker", wait: time.Second}
	}
	if err != nil {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "claiming the build", Err: err}
	}
	return nil
}

// hold renews the claim until stop is called.
func (w *Worker) hold(ctx context.Context, e *entry[buildRecord], lost context.CancelCauseFunc) (stop func()) {
	return w.every(ctx, "build", lost, func(ctx context.Context) error {
		next := e.value
		next.ExpiresAt = time.Now().UTC().Add(w.cfg.Lease)
		return e.store(ctx, w.deps.Ledger, next)
	})
}

// release ends the claim without a result, so that the build can be claimed at once.
func (w *Worker) release(ctx context.Context, e *entry[buildRecord], code builder.Kind) error {
	next := e.value
	next.Status, next.Owner, next.ExpiresAt = statusReleased, "", time.Time{}
	next.Code, next.Finished = string(code), time.Now().UTC()
	if err := e.store(ctx, w.deps.Ledger, next); err != nil {
		return fmt.Errorf("release the build: %w", err)
	}
	return nil
}

// complete ends the claim with a result.
func (w *Worker) complete(ctx context.Context, e *entry[buildRecord], imageRef string, result builder.Result) error {
	next := e.value
	next.Status, next.Owner, next.ExpiresAt = statusCompleted, "", time.Time{}
	next.ImageRef, next.Digest = imageRef, result.Digest
	next.Finished, next.BuildMS = time.Now().UTC(), result.Duration.Milliseconds()
	err := e.store(ctx, w.deps.Ledger, next)
	switch {
	case errors.Is(err, ErrConflict):
		return &builder.Error{Kind: builder.KindLeaseLost, Op: "recording the build", Err: err}
	case err != nil:
		return &builder.Error{Kind: builder.KindUnavailable, Op: "recording the build", Err: err}
	}
	return nil
}
