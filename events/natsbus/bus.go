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

// New returns a Bus on an open connection, which it does not close. It reports
// every fault of the topology and does not talk to the server.
func New(nc *nats.Conn, t Topology) (*Bus, error) {
	if err := t.validate(); err != nil {
		return nil, err
	}
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

// ErrTooLarge is returned for an event that the server does not take.
var ErrTooLarge = errors.New("event is larger than the server takes")

// Publish stores the event and waits for the server's confirmation. A transient
// fault is retried until ctx ends; the event's id makes that harmless, and an event
// that is stored already is a success. The error of one that is too large matches
// ErrTooLarge.
func (b *Bus) Publish(ctx context.Context, e events.Event) error {
	m, err := events.Encode(e, b.Subjects())
	if err != nil {
		return err
	}
	_, err = b.Store(ctx, m)
	return err
}

// Bounds of Store: how long one try takes, how long a try waits for the next, and
// how many tries meet no stream before that counts as not provisioned (a cluster
// that elects a leader looks the same for a moment).
const (
	storeTry      = 5 * time.Second
	storeMaxPause = 2 * time.Second
	storeNoStream = 5
)

// codeMessageTooLarge is JetStream's answer to a message above the stream's limit.
const codeMessageTooLarge jetstream.ErrorCode = 10054

// Store is Publish for an encoded event, and returns its position in the stream.
func (b *Bus) Store(ctx context.Context, m events.Message) (sequence uint64, err error) {
	msg := &nats.Msg{Subject: m.Subject, Header: nats.Header(m.Header), Data: m.Data}
	if limit := b.js.Conn().MaxPayload(); limit > 0 && int64(msg.Size()-len(m.Subject)) > limit {
		return 0, fmt.Errorf("publish %s: %w: %d bytes; max_payload is %d", m.Subject, ErrTooLarge, len(m.Data), limit)
	}
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, storeMaxPause
	noStream := 0
	ack, err := backoff.Retry(ctx, func() (*jetstream.PubAck, error) {
		try, cancel := context.WithTimeout(ctx, storeTry)
		defer cancel()
		ack, err := b.js.PublishMsg(try, msg)
		refused, _ := errors.AsType[*jetstream.APIError](err)
		switch {
		case errors.Is(err, nats.ErrMaxPayload), refused != nil && refused.ErrorCode == codeMessageTooLarge:
			return nil, backoff.Permanent(fmt.Errorf("%w: %d bytes", ErrTooLarge, len(m.Data)))
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubject):
			return nil, backoff.Permanent(err)
		case errors.Is(err, jetstream.ErrNoStreamResponse):
			if noStream++; noStream >= storeNoStream {
				return nil, backoff.Permanent(missing("a stream for "+m.Subject, err))
			}
		}
		return ack, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return 0, fmt.Errorf("publish %s: %w", m.Subject, err)
	}
	return ack.Sequence, nil
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

// missing tells what to do when nothing was provisioned.
func missing(what string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound),
		errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrConsumerDeleted), errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("%s does not exist on the server; run `kiln provision` first: %w", what, err)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("use %s: JetStream is off for this server or account; start the server with -js and allow it: %w", what, err)
	default:
		return fmt.Errorf("use %s: %w", what, err)
	}
}

func toMessage(msg jetstream.Msg, meta *jetstream.MsgMetadata) events.Message {
	return events.Message{
		Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(), Time: meta.Timestamp,
		FallbackID: fallbackID(meta.Stream, meta.Sequence.Stream),
	}
}

func fallbackID(stream string, sequence uint64) string {
	return fmt.Sprintf("seq:%s:%d", stream, sequence)
}
