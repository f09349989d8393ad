package main

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v6"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of binding to what exists on the servers. A cluster that elects a leader does
// not answer what it was asked meanwhile.
const (
	bindTry      = 3 * time.Second
	bindPatience = time.Minute
)

// bound asks for what a worker stands on until the servers answer.
func bound[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	got, err := backoff.Retry(ctx, func() (T, error) {
		try, cancel := context.WithTimeout(ctx, bindTry)
		defer cancel()
		got, err := ask(try)
		if err != nil && !busy(err) {
			err = backoff.Permanent(err)
		}
		return got, err
	}, backoff.WithMaxElapsedTime(bindPatience))
	if ended := backoff.AsRetryError(err); ended != nil {
		err = ended.LastErr
	}
	return got, err
}

// busy reports whether a server may answer better in a moment.
func busy(err error) bool {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && refused.Code == 503
}
