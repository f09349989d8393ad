package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Start is where reading a stream begins: at a sequence, else at a time, else at
// the first message that is kept.
type Start struct {
	Sequence uint64
	Time     time.Time
}

// Scan calls visit for the stored events of the given types, oldest first, up to
// the newest one at the time of the call, until visit returns false. The types are of
// builds or of runs: these have streams of their own.
func (b *Bus) Scan(ctx context.Context, types []events.Type, start Start, visit func(events.Message) bool) error {
	return b.read(ctx, types, start, false, visit)
}

// Follow is Scan that goes on with new events until visit returns false or ctx ends
// (then with ctx's error). It survives reconnects and restarts of the server, and
// visits no event twice.
func (b *Bus) Follow(ctx context.Context, types []events.Type, start Start, visit func(events.Message) bool) error {
	return b.read(ctx, types, start, true, visit)
}

func (b *Bus) read(ctx context.Context, types []events.Type, start Start, follow bool, visit func(events.Message) bool) error {
	subjects := make([]string, 0, len(types))
	stream := b.topology.buildStream()
	for _, t := range types {
		subjects = append(subjects, b.Subjects().Of(t))
		if slices.Contains(events.RunTypes(), t) {
			stream = b.topology.runStream()
		}
	}
	r := reader{js: b.js, stream: stream, subjects: subjects, start: start, follow: follow}
	return r.run(ctx, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		return visit(toMessage(msg, meta))
	})
}

// Bounds of a reader.
const (
	readBatch = 256
	// readIdle ends a consumer at the server that nobody reads any more.
	readIdle = 30 * time.Second
	// readPatience is how long a stream that was there may be missing, as it is
	// while a cluster restarts.
	readPatience = 5 * time.Second
	readPause    = 250 * time.Millisecond
)

// reader reads a stream in order, each message once. It does the same as the
// library's ordered consumer, which cannot be used here: while that one replaces its
// consumer at the server it heeds no context, and tries without end.
type reader struct {
	js       jetstream.JetStream
	stream   string
	subjects []string
	start    Start
	follow   bool
	// position, if set, is called before each consumer is made. It may change last, and
	// ends the reading if it is done.
	position func(context.Context) (done bool, err error)

	// last is the stream sequence of the newest visited message.
	last uint64
	// goal is the sequence of a message that a follower knows to come. While it does
	// not, a pull that brings nothing makes the reader look again.
	goal uint64
	// pending is how many messages there are after that one; only meaningful when
	// the reader does not follow.
	pending uint64
	// asked is when the server was last asked for messages.
	asked time.Time
}

type visitor func(jetstream.Msg, *jetstream.MsgMetadata) bool

// run reads with one consumer after another, each of which begins where the one
// before ended.
func (r *reader) run(ctx context.Context, visit visitor) error {
	connected := r.js.Conn().StatusChanged(nats.CONNECTED)
	defer r.js.Conn().RemoveStatusListener(connected)
	bound := false
	var missed time.Time
	for {
		consumer, done, err := r.bind(ctx)
		switch {
		case done:
			return ctx.Err()
		case err == nil:
			bound, missed = true, time.Time{}
			if done := r.drain(ctx, consumer, connected, visit); done {
				return ctx.Err()
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrConnectionClosed), !bound:
			return missing("stream "+r.stream, err)
		case errors.Is(err, jetstream.ErrStreamNotFound):
			if missed.IsZero() {
				missed = time.Now()
			}
			if time.Since(missed) > readPatience {
				return missing("stream "+r.stream, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readPause):
		}
	}
}

// bind creates a consumer at the server that begins after the last visited message.
func (r *reader) bind(ctx context.Context) (consumer jetstream.Consumer, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if r.position != nil {
		if done, err := r.position(ctx); done || err != nil {
			return nil, done, err
		}
	}
	cfg := jetstream.ConsumerConfig{
		Description: "Kiln: reader", FilterSubjects: r.subjects, AckPolicy: jetstream.AckNonePolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: readIdle, MemoryStorage: true, Replicas: 1,
	}
	switch {
	case r.last > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.last+1
	case r.start.Sequence > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.start.Sequence
	case !r.start.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &r.start.Time
	}
	if consumer, err = r.js.CreateConsumer(ctx, r.stream, cfg); err != nil {
		return nil, false, fmt.Errorf("create a reader: %w", err)
	}
	r.pending = consumer.CachedInfo().NumPending
	return consumer, false, nil
}

// drain reads with one consumer. It returns false if another consumer has to go on:
// after an error, a gap, or a reconnect, since what was on its way then is lost.
func (r *reader) drain(ctx context.Context, consumer jetstream.Consumer, connected <-chan nats.Status, visit visitor) (done bool) {
	defer r.drop(ctx, consumer)
	delivered := uint64(0)
	for r.follow || r.pending > 0 {
		before := delivered
		again, done := r.pull(ctx, consumer, connected, &delivered, visit)
		switch {
		case done, ctx.Err() != nil:
			return true
		case !again, delivered == before && (!r.follow || r.last < r.goal):
			// In the last case what was to come is gone, and another consumer counts anew.
			return false
		}
	}
	return true
}

// pull asks for one batch and visits it. Again is false if the consumer cannot be
// used any more; done is true when everything wanted is read.
func (r *reader) pull(ctx context.Context, consumer jetstream.Consumer, connected <-chan nats.Status, delivered *uint64, visit visitor) (again, done bool) {
	ctx, cancel := context.WithTimeout(ctx, pullExpiry)
	defer cancel()
	batch, err := consumer.Fetch(readBatch, pullOptions(ctx)...)
	if err != nil {
		return false, false
	}
	r.asked = time.Now().Round(0) // by the clock on the wall, which goes on while a machine sleeps
	messages := batch.Messages()
	for {
		select {
		case <-connected:
			return false, false
		case msg, open := <-messages:
			if !open {
				err := batch.Error()
				return err == nil || errors.Is(err, context.DeadlineExceeded), false
			}
			meta, err := msg.Metadata()
			if err != nil || meta.Sequence.Consumer != *delivered+1 {
				return false, false
			}
			*delivered++
			r.last, r.pending = meta.Sequence.Stream, meta.NumPending
			if !visit(msg, meta) || (!r.follow && r.pending == 0) {
				return false, true
			}
		}
	}
}

// drop removes the consumer, so that many short reads leave nothing behind. If it
// fails, the server does the same a little later.
func (r *reader) drop(ctx context.Context, consumer jetstream.Consumer) {
	if !r.js.Conn().IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = r.js.DeleteConsumer(ctx, r.stream, consumer.CachedInfo().Name)
}
