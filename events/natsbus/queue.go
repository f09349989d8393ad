package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Queue fetches requests, one per call; nothing is prefetched. Safe for concurrent use.
type Queue struct {
	consumer jetstream.Consumer
}

// pullExpiry is how long one pull request waits at the server.
const pullExpiry = 20 * time.Second

// Queue binds to the workers' consumer. It fails if that was not provisioned.
func (b *Bus) Queue(ctx context.Context) (*Queue, error) {
	consumer, err := b.js.Consumer(ctx, b.topology.buildStream(), consumerName)
	if err != nil {
		return nil, missing("consumer "+consumerName, err)
	}
	return &Queue{consumer: consumer}, nil
}

// Next blocks until a request is there or ctx ends, then with ctx's error. Other
// errors are temporary.
func (q *Queue) Next(ctx context.Context) (*Delivery, error) {
	for ctx.Err() == nil {
		d, err := q.pull(ctx)
		if d != nil || err != nil {
			return d, err
		}
	}
	return nil, ctx.Err()
}

// pull waits for one message; nil without an error means that none came.
func (q *Queue) pull(ctx context.Context) (*Delivery, error) {
	wait, cancel := context.WithTimeout(ctx, pullExpiry)
	defer cancel()
	batch, err := q.consumer.Fetch(1, jetstream.FetchContext(wait))
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("fetch a request: %w", err)
	}
	// The channel is closed once the pull is over, so that nothing outlives it.
	var got *Delivery
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return nil, fmt.Errorf("read a request's metadata: %w", err)
		}
		got = &Delivery{msg: msg, meta: meta}
	}
	switch err := batch.Error(); {
	case got != nil:
		return got, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil, errors.Is(err, context.DeadlineExceeded):
		return nil, nil
	default:
		return nil, fmt.Errorf("fetch a request: %w", err)
	}
}

// Delivery is one delivery of a request. Safe for concurrent use.
type Delivery struct {
	msg  jetstream.Msg
	meta *jetstream.MsgMetadata
}

// Event is the message as it arrived. Its FallbackID is "seq:<stream>:<sequence>".
func (d *Delivery) Event() events.Message { return toMessage(d.msg, d.meta) }

// Sequence is the position of the message in its stream.
func (d *Delivery) Sequence() uint64 { return d.meta.Sequence.Stream }

// InProgress resets the redelivery timer. It does not wait for the server.
func (d *Delivery) InProgress(context.Context) error {
	if err := d.msg.InProgress(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return fmt.Errorf("report progress: %w", err)
	}
	return nil
}

// Ack ends the message and waits for the server's confirmation. A second Ack is no
// error.
func (d *Delivery) Ack(ctx context.Context) error {
	if err := d.msg.DoubleAck(ctx); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return fmt.Errorf("ack: %w", err)
	}
	return nil
}

// Nak asks for a redelivery after delay, at once if it is 0.
func (d *Delivery) Nak(_ context.Context, delay time.Duration) error {
	nak := d.msg.Nak
	if delay > 0 {
		nak = func() error { return d.msg.NakWithDelay(delay) }
	}
	if err := nak(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return fmt.Errorf("nak: %w", err)
	}
	return nil
}
