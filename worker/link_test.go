package worker

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// link is all that connects one worker with the world. Once it is dead, as after the
// death of the worker's process, nothing that the worker does has an effect.
type link struct {
	dead atomic.Bool
	// ackWait brings a message again that was not answered; 0: never.
	ackWait time.Duration
	// odds of a fault in a thousand calls: an error before the effect, one after it, and
	// a pause.
	before, after, slow int

	mu      sync.Mutex
	dice    *rand.Rand
	pending map[*memMessage]*time.Timer
}

func newLink(seed uint64) *link {
	return &link{dice: rand.New(rand.NewPCG(seed, seed)), pending: map[*memMessage]*time.Timer{}}
}

var (
	errDead  = errors.New("this process is dead")
	errFault = errors.New("injected fault")
)

func (l *link) roll() (before, after, slow bool, pause time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hit := func(odds int) bool { return odds > 0 && l.dice.IntN(1000) < odds }
	return hit(l.before), hit(l.after), hit(l.slow), time.Duration(l.dice.IntN(20)) * time.Millisecond
}

func (l *link) call(f func() error) error {
	before, after, slow, pause := l.roll()
	if slow {
		time.Sleep(pause)
	}
	switch {
	case l.dead.Load():
		return errDead
	case before:
		return errFault
	}
	if err := f(); err != nil {
		return err
	}
	if after {
		return errFault
	}
	return nil
}

// kill ends the worker's process: messages that it did not answer come again.
func (l *link) kill() {
	if l.dead.Swap(true) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for m, timer := range l.pending {
		timer.Stop()
		m.q.ch <- m
	}
	clear(l.pending)
}

type linkQueue struct {
	l *link
	*memQueue
}

func (q linkQueue) Next(ctx context.Context) (Message, error) {
	if q.l.dead.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := q.l.call(func() error { return nil }); err != nil {
		return nil, err
	}
	next, err := q.memQueue.Next(ctx)
	if err != nil {
		return nil, err
	}
	m, ok := next.(*memMessage)
	if !ok {
		return next, nil
	}
	q.l.mu.Lock()
	defer q.l.mu.Unlock()
	if q.l.dead.Load() {
		m.q.ch <- m
		return nil, errDead
	}
	timer := time.AfterFunc(time.Hour, func() { q.l.again(m) })
	if q.l.ackWait > 0 {
		timer.Reset(q.l.ackWait)
	}
	q.l.pending[m] = timer
	return linkMessage{q.l, m}, nil
}

func (q linkQueue) Read(ctx context.Context, sequence uint64) (m events.Message, err error) {
	err = q.l.call(func() error { m, err = q.memQueue.Read(ctx, sequence); return err })
	return m, err
}

// again brings a message that was not answered.
func (l *link) again(m *memMessage) {
	if l.answered(m) {
		m.q.ch <- m
	}
}

func (l *link) answered(m *memMessage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	timer, ok := l.pending[m]
	if ok {
		timer.Stop()
	}
	delete(l.pending, m)
	return ok
}

type linkMessage struct {
	l *link
	*memMessage
}

func (m linkMessage) InProgress(ctx context.Context) error {
	return m.l.call(func() error {
		m.l.mu.Lock()
		defer m.l.mu.Unlock()
		if timer, ok := m.l.pending[m.memMessage]; ok && m.l.ackWait > 0 {
			timer.Reset(m.l.ackWait)
		}
		return m.memMessage.InProgress(ctx)
	})
}

func (m linkMessage) Ack(ctx context.Context) error {
	return m.l.call(func() error { m.l.answered(m.memMessage); return m.memMessage.Ack(ctx) })
}

func (m linkMessage) Nak(ctx context.Context, d time.Duration) error {
	return m.l.call(func() error { m.l.answered(m.memMessage); return m.memMessage.Nak(ctx, d) })
}

type linkStore struct {
	l *link
	s *memBucket
}

func (s linkStore) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	err = s.l.call(func() (err error) { value, revision, err = s.s.Get(ctx, key); return err })
	return value, revision, err
}

func (s linkStore) Put(ctx context.Context, key string, value []byte, revision uint64) (next uint64, err error) {
	err = s.l.call(func() (err error) { next, err = s.s.Put(ctx, key, value, revision); return err })
	return next, err
}

func (s linkStore) Delete(ctx context.Context, key string, revision uint64) error {
	return s.l.call(func() error { return s.s.Delete(ctx, key, revision) })
}

// visit passes changes on while the worker lives, and now and then breaks the watch.
func (l *link) visit(visit func(backlog.Change) bool) func(backlog.Change) bool {
	return func(c backlog.Change) bool {
		before, _, _, _ := l.roll()
		return !l.dead.Load() && !before && visit(c)
	}
}

type linkLedger struct{ linkStore }

func (s linkLedger) Watch(ctx context.Context, pattern string, visit func(backlog.Change) bool) error {
	err := memLedger{s.s}.Watch(ctx, pattern, s.l.visit(visit))
	if s.l.dead.Load() {
		<-ctx.Done()
	}
	return err
}

type linkBacklog struct{ linkStore }

func (s linkBacklog) Watch(ctx context.Context, visit func(backlog.Change) bool) error {
	err := memBacklog{s.s}.Watch(ctx, s.l.visit(visit))
	if s.l.dead.Load() {
		<-ctx.Done()
	}
	return err
}

type linkStream struct {
	l *link
	*memStream
}

func (s linkStream) Publish(ctx context.Context, e events.Event) error {
	return s.l.call(func() error { return s.memStream.Publish(ctx, e) })
}

func (s linkStream) Published(ctx context.Context, t events.Type, id string, since time.Time) (out bool, err error) {
	err = s.l.call(func() (err error) { out, err = s.memStream.Published(ctx, t, id, since); return err })
	return out, err
}

// linkRegistry is a registry that can be reached over the link only.
type linkRegistry struct {
	l *link
	builder.Registry
}

func (r linkRegistry) With(secret string) builder.Registry {
	return linkRegistry{r.l, r.Registry.With(secret)}
}

func (r linkRegistry) unavailable(err error) error {
	if errors.Is(err, errDead) || errors.Is(err, errFault) {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "using the registry", Err: err}
	}
	return err
}

func (r linkRegistry) Resolve(ctx context.Context, ref, platform string) (image builder.Image, err error) {
	err = r.l.call(func() (err error) { image, err = r.Registry.Resolve(ctx, ref, platform); return err })
	return image, r.unavailable(err)
}

func (r linkRegistry) Prepare(ctx context.Context, destination string) error {
	return r.unavailable(r.l.call(func() error { return r.Registry.Prepare(ctx, destination) }))
}

func (r linkRegistry) Verify(ctx context.Context, ref string) error {
	return r.unavailable(r.l.call(func() error { return r.Registry.Verify(ctx, ref) }))
}

func (r linkRegistry) Tag(ctx context.Context, ref, target string) error {
	return r.unavailable(r.l.call(func() error { return r.Registry.Tag(ctx, ref, target) }))
}

// linkEngine runs builds of the worker, none once it is dead.
func (l *link) engine(run engineFunc) engineFunc {
	return func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
		if l.dead.Load() {
			return builder.Result{}, errDead
		}
		return run(ctx, plan, logs)
	}
}
