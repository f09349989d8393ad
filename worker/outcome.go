package worker

import (
	"context"
	"errors"
	"time"

	"kiln/builder"
)

// answer is what the queue is told.
type answer int

const (
	answerNone answer = iota
	answerAck
	answerNak
)

// verdict is an answer with its details. Code labels the reason of a Nak.
type verdict struct {
	answer answer
	delay  time.Duration
	code   string
}

// fate is what becomes of a request after one delivery of it.
type fate int

const (
	// fateSettle ends the request with a terminal event.
	fateSettle fate = iota
	// fateRetry counts the try and comes back later.
	fateRetry
	// fateWait comes back later without counting: the build runs elsewhere.
	fateWait
	// fateHandBack gives the request to another worker at once, uncounted.
	fateHandBack
	// fateAbandon does nothing: somebody else owns the request.
	fateAbandon
)

// busyError says that somebody else is working on the build.
type busyError struct {
	owner string
	wait  time.Duration
}

func (e *busyError) Error() string { return "build is in progress at " + e.owner }

// decide turns the result of one delivery into the request's fate.
func decide(ctx context.Context, err error, lastTry bool) fate {
	if err == nil {
		return fateSettle
	}
	if cause := context.Cause(ctx); errors.Is(cause, builder.ErrLeaseLost) {
		return fateAbandon
	} else if errors.Is(cause, builder.ErrShutdown) {
		return fateHandBack
	}
	if _, busy := errors.AsType[*busyError](err); busy {
		return fateWait
	}
	switch builder.KindOf(err) {
	case builder.KindLeaseLost:
		return fateAbandon
	case builder.KindInterrupted:
		return fateHandBack
	case builder.KindUnavailable:
		if lastTry {
			return fateSettle
		}
		return fateRetry
	default:
		return fateSettle
	}
}

// delay before the given try's successor.
func (w *Worker) delay(tries int) time.Duration {
	return Delay(tries, w.cfg.RetryDelay, w.cfg.RetryMaxDelay)
}
