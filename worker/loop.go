package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v6"

	"kiln/builder"
)

// Failed is told of an attempt that failed and will be repeated after a pause.
type Failed func(err error, retryIn time.Duration)

// Consume handles one message of the queue after another until ctx ends. It owns no
// message while it fetches, and fetches none while it handles one.
func Consume(ctx context.Context, q Queue, failed Failed, handle func(Message)) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 10*time.Second
	for ctx.Err() == nil {
		msg, err := q.Next(ctx)
		if ctx.Err() != nil && msg == nil {
			return
		}
		if err != nil {
			pause := wait.NextBackOff()
			failed(err, pause)
			Sleep(ctx, pause)
			continue
		}
		wait.Reset()
		handle(msg)
	}
}

// KeepWatching begins a watch anew whenever it ends, until ctx ends.
func KeepWatching(ctx context.Context, failed Failed, watch func() error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := watch()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > wait.MaxInterval {
			wait.Reset()
		}
		pause := wait.NextBackOff()
		failed(err, pause)
		Sleep(ctx, pause)
	}
}

// Hold runs renew every third of a lease until stop is called, which waits for a
// renewal under way. When no renewal succeeded for two thirds of a lease, or one
// says that the lease is somebody else's (ErrConflict), lost is called with
// builder.ErrLeaseLost: early enough to stop before the lease ends. Failed is told of
// every renewal that failed.
func Hold(ctx context.Context, lease time.Duration, renew func(context.Context) error, failed func(error), lost context.CancelCauseFunc) (stop func()) {
	interval := lease / 3
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
			// Not cut off by stop: whether it was stored would not be known.
			attempt, release := context.WithTimeoutCause(context.WithoutCancel(ctx), interval, errors.New("renewal took too long"))
			err := renew(attempt)
			release()
			switch {
			case err == nil:
				renewed = began
				continue
			case ctx.Err() != nil:
				return
			}
			failed(err)
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

// Sleep waits for d or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Jitter lengthens a pause a little, so that workers do not all reach for the same.
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + rand.N(min(d/4, 250*time.Millisecond)+1) //nolint:gosec // no secrecy needed
}

// Delay before the given try's successor: least for the first, doubling, bounded by
// most, between 50 % and 100 % of the nominal value.
func Delay(tries int, least, most time.Duration) time.Duration {
	d := least
	for range tries - 1 {
		if d *= 2; d >= most {
			d = most
			break
		}
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter needs no secrecy
}
