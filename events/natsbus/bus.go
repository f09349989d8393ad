package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v6"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Bus publishes and fetches events. Safe for concurrent use.
type Bus struct {
	js       jetstream.JetStream
	topology Topology
}

// New returns a Bus on an open connection, which it does not close.
func New(nc *nats.Conn, t Topology) (*Bus, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	return &Bus{js: js, topology: t.withDefaults()}, nil
}

// JetStream returns the underlying JetStream context, for Provision.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Subjects returns the subjects of the bus.
func (b *Bus) Subjects() events.Subjects { return b.topology.Subjects() }

// ErrTooLarge is returned by Publish for an event that the server does not take.
var ErrTooLarge = errors.New("event is larger than the server's max_payload")

// Publish stores the event and waits for the server's confirmation. A fault is
// retried until ctx ends; the event's id makes that harmless.
func (b *Bus) Publish(ctx context.Context, e events.Event) error {
	m, err := events.Encode(e, b.Subjects())
	if err != nil {
		return err
	}
	msg := &nats.Msg{Subject: m.Subject, Header: nats.Header(m.Header), Data: m.Data}
	_, err = backoff.Retry(ctx, func() (*jetstream.PubAck, error) {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		ack, err := b.js.PublishMsg(try, msg)
		if errors.Is(err, nats.ErrMaxPayload) {
			return nil, backoff.Permanent(fmt.Errorf("%w: %d bytes", ErrTooLarge, len(m.Data)))
		}
		return ack, err
	}, backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("publish %s: %w", m.Subject, err)
	}
	return nil
}

// Published reports whether the stream holds an event of this type and id that was
// stored since the given time.
func (b *Bus) Published(ctx context.Context, t events.Type, id string, since time.Time) (bool, error) {
	found := false
	err := b.Scan(ctx, []events.Type{t}, Start{Time: since}, func(m events.Message) bool {
		ids := m.Header["Nats-Msg-Id"]
		found = len(ids) > 0 && ids[0] == id
		return !found
	})
	return found, err
}

// Start is where reading a stream begins: at a sequence, else at a time, else at
// the first message that is kept.
type Start struct {
	Sequence uint64
	Time     time.Time
}

// Scan calls visit for the stored events of the given types, oldest first, up to
// the newest one at the time of the call, until visit returns false.
func (b *Bus) Scan(ctx context.Context, types []events.Type, start Start, visit func(events.Message) bool) error {
	return b.read(ctx, types, start, false, visit)
}

// Follow is Scan that goes on with new events until visit returns false or ctx ends
// (then with ctx's error).
func (b *Bus) Follow(ctx context.Context, types []events.Type, start Start, visit func(events.Message) bool) error {
	return b.read(ctx, types, start, true, visit)
}

func (b *Bus) read(ctx context.Context, types []events.Type, start Start, follow bool, visit func(events.Message) bool) error {
	var subjects []string
	for _, t := range types {
		subjects = append(subjects, b.Subjects().Of(t))
	}
	return readStream(ctx, b.js, b.topology.buildStream(), subjects, start, follow, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		return visit(toMessage(msg, meta))
	})
}

// readStream reads with an ordered consumer, which resumes by itself after gaps and
// reconnects. When it does not follow it ends after the last stored message.
func readStream(ctx context.Context, js jetstream.JetStream, name string, subjects []string, start Start, follow bool,
	visit func(jetstream.Msg, *jetstream.MsgMetadata) bool,
) error {
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverAllPolicy}
	switch {
	case start.Sequence > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start.Sequence
	case !start.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &start.Time
	}
	consumer, err := js.OrderedConsumer(ctx, name, cfg)
	if err != nil {
		return missing(name, err)
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return fmt.Errorf("read stream %s: %w", name, err)
	}
	if !follow && info.NumPending == 0 {
		return nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read stream %s: %w", name, err)
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, jetstream.ErrNoHeartbeat) {
				continue
			}
			return fmt.Errorf("read stream %s: %w", name, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", name, err)
		}
		if !visit(msg, meta) || (!follow && meta.NumPending == 0) {
			return nil
		}
	}
}

// missing tells what to do when nothing was provisioned.
func missing(what string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("%s does not exist on the server; run `kiln provision` first: %w", what, err)
	}
	return fmt.Errorf("use %s: %w", what, err)
}

func toMessage(msg jetstream.Msg, meta *jetstream.MsgMetadata) events.Message {
	return events.Message{
		Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(), Time: meta.Timestamp,
		FallbackID: fmt.Sprintf("seq:%s:%d", meta.Stream, meta.Sequence.Stream),
	}
}
