package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Queue fetches requests, cancels or results, one per call; nothing is prefetched. Safe for
// concurrent use.
type Queue struct {
	nc       *nats.Conn
	stream   jetstream.Stream
	consumer jetstream.Consumer
	name     string
}

// pullExpiry is how long one pull request waits at the server, which shows every
// pullHeartbeat that it is still there.
const (
	pullExpiry    = 20 * time.Second
	pullHeartbeat = 2 * time.Second
)

// pullOptions bounds a pull by ctx, and asks for heartbeats unless it is too short
// for them.
func pullOptions(ctx context.Context) []jetstream.FetchOpt {
	opts := []jetstream.FetchOpt{jetstream.FetchContext(ctx)}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > 4*pullHeartbeat {
		opts = append(opts, jetstream.FetchHeartbeat(pullHeartbeat))
	}
	return opts
}

// Queue binds to the workers' consumer of requests. It fails if that was not provisioned.
func (b *Bus) Queue(ctx context.Context) (*Queue, error) {
	return b.queue(ctx, b.topology.buildStream(), requestConsumer)
}

// Cancels binds to the workers' consumer of cancels, as Queue does to that of requests.
func (b *Bus) Cancels(ctx context.Context) (*Queue, error) {
	return b.queue(ctx, b.topology.buildStream(), cancelConsumer)
}

func (b *Bus) queue(ctx context.Context, streamName, name string) (*Queue, error) {
	stream, err := b.js.Stream(ctx, streamName)
	if err != nil {
		return nil, missing("stream "+streamName, err)
	}
	consumer, err := b.js.Consumer(ctx, streamName, name)
	if err != nil {
		return nil, missing("consumer "+name, err)
	}
	return &Queue{nc: b.js.Conn(), stream: stream, consumer: consumer, name: name}, nil
}

// AckWait is how long a worker may be silent before its message goes to another.
func (q *Queue) AckWait() time.Duration { return q.consumer.CachedInfo().Config.AckWait }

// Read returns the stored message with that sequence, as a delivery would show it. The
// error matches ErrNotFound when there is none any more.
func (q *Queue) Read(ctx context.Context, sequence uint64) (events.Message, error) {
	msg, err := q.stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return events.Message{}, ErrNotFound
	}
	if err != nil {
		return events.Message{}, fmt.Errorf("read message %d: %w", sequence, err)
	}
	return events.Message{
		Subject: msg.Subject, Header: msg.Header, Data: msg.Data, Time: msg.Time,
		FallbackID: fallbackID(q.stream.CachedInfo().Config.Name, msg.Sequence),
	}, nil
}

// Pending asks the server how many messages wait that no worker has been given yet.
func (q *Queue) Pending(ctx context.Context) (uint64, error) {
	info, err := q.consumer.Info(ctx)
	if err != nil {
		return 0, missing("consumer "+q.name, err)
	}
	return info.NumPending, nil
}

// Next blocks until a message is there or ctx ends, then with ctx's error. Exactly
// one message is asked for, and none waits in this process. After a reconnect it
// asks again. Other errors are temporary, also that the server or the consumer is
// gone: it may come back.
func (q *Queue) Next(ctx context.Context) (*Delivery, error) {
	connected := q.nc.StatusChanged(nats.CONNECTED)
	defer q.nc.RemoveStatusListener(connected)
	for ctx.Err() == nil {
		d, err := q.pull(ctx, connected)
		if d != nil || err != nil {
			return d, err
		}
	}
	return nil, ctx.Err()
}

// pull waits for one message; nil without an error means that none came.
func (q *Queue) pull(ctx context.Context, connected <-chan nats.Status) (*Delivery, error) {
	wait, cancel := context.WithTimeout(ctx, pullExpiry)
	defer cancel()
	batch, err := q.consumer.Fetch(1, pullOptions(wait)...)
	if err != nil {
		// A deadline that passed shows here a moment before ctx says so.
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("fetch from %s: %w", q.name, err)
	}
	// The channel is closed once the pull is over, so that nothing outlives it.
	var got *Delivery
	for messages := batch.Messages(); messages != nil; {
		select {
		case <-connected: // the server may have forgotten this pull
			cancel()
		case msg, open := <-messages:
			if !open {
				messages = nil
				continue
			}
			meta, err := msg.Metadata()
			if err != nil {
				return nil, fmt.Errorf("read a message's metadata: %w", err)
			}
			got = &Delivery{nc: q.nc, msg: msg, meta: meta}
		}
	}
	err = batch.Error()
	switch {
	case got != nil:
		return got, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil, wait.Err() != nil:
		return nil, nil // the pull expired
	default:
		return nil, missing("consumer "+q.name, err)
	}
}

// Delivery is one delivery of a message. Safe for concurrent use.
type Delivery struct {
	nc   *nats.Conn
	msg  jetstream.Msg
	meta *jetstream.MsgMetadata
}

// Event is the message as it arrived. Its FallbackID is "seq:<stream>:<sequence>".
func (d *Delivery) Event() events.Message { return toMessage(d.msg, d.meta) }

// Sequence is the position of the message in its stream.
func (d *Delivery) Sequence() uint64 { return d.meta.Sequence.Stream }

// JetStream's word for work in progress, see
// https://docs.nats.io/using-nats/developer/develop_jetstream/model_deep_dive.
const ackProgress = "+WPI"

// InProgress resets the redelivery timer and waits for the server's confirmation:
// without one the message may come to another worker, and the caller has to know.
func (d *Delivery) InProgress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := d.nc.RequestWithContext(ctx, d.msg.Reply(), []byte(ackProgress)); err != nil {
		return fmt.Errorf("report progress: %w", err)
	}
	return nil
}

// answerTimeout bounds the wait for the server where the caller sets no bound.
const answerTimeout = 10 * time.Second

// Ack ends the message and waits for the server's confirmation. A second Ack is no
// error.
func (d *Delivery) Ack(ctx context.Context) error {
	if err := d.msg.DoubleAck(ctx); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return fmt.Errorf("ack: %w", err)
	}
	return nil
}

// Nak asks for a redelivery after delay, at once if it is 0, and waits until the
// server has read that, so that the caller may close the connection.
func (d *Delivery) Nak(ctx context.Context, delay time.Duration) error {
	nak := d.msg.Nak
	if delay > 0 {
		nak = func() error { return d.msg.NakWithDelay(delay) }
	}
	err := nak()
	if errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return nil
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		err = d.nc.FlushWithContext(ctx)
	}
	if err != nil {
		return fmt.Errorf("nak: %w", err)
	}
	return nil
}
