package trigger

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/worker"
	"kiln/worker/backlog"
)

// link is all that connects one trigger with the world. Once it is dead, as after the
// death of the trigger's process, nothing that the trigger does has an effect.
type link struct {
	dead atomic.Bool
	// ackWait brings a message again that was not answered; 0: never.
	ackWait time.Duration
	// odds of a fault in a thousand calls: an error before the effect, one after it, and
	// a pause.
	before, after, slow int

	mu      sync.Mutex
	dice    *rand.Rand
	pending map[*message]*time.Timer
}

func newLink(seed uint64) *link {
	return &link{dice: rand.New(rand.NewPCG(seed, seed)), pending: map[*message]*time.Timer{}, ackWait: 250 * time.Millisecond}
}

var (
	errDead  = errors.New("this process is dead")
	errFault = errors.New("injected fault")
)

func (l *link) call(f func() error) error {
	l.mu.Lock()
	hit := func(odds int) bool { return odds > 0 && l.dice.IntN(1000) < odds }
	before, after, slow, pause := hit(l.before), hit(l.after), hit(l.slow), time.Duration(l.dice.IntN(20))*time.Millisecond
	l.mu.Unlock()
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

// kill ends the trigger's process: messages that it did not answer come again.
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

func (l *link) answered(m *message) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	timer, ok := l.pending[m]
	if ok {
		timer.Stop()
	}
	delete(l.pending, m)
	return ok
}

type linkQueue struct {
	l *link
	w *world
	q *queue
}

func (q linkQueue) Next(ctx context.Context) (worker.Message, error) {
	if q.l.dead.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := q.l.call(func() error { return nil }); err != nil {
		return nil, err
	}
	next, err := q.q.Next(ctx)
	if err != nil {
		return nil, err
	}
	m := next.(*message)
	q.l.mu.Lock()
	defer q.l.mu.Unlock()
	if q.l.dead.Load() {
		m.q.ch <- m
		return nil, errDead
	}
	q.l.pending[m] = time.AfterFunc(q.l.ackWait, func() {
		if q.l.answered(m) {
			m.q.ch <- m
		}
	})
	return linkMessage{q.l, m}, nil
}

func (q linkQueue) Read(ctx context.Context, sequence uint64) (m events.Message, err error) {
	err = q.l.call(func() error { m, err = q.w.Read(ctx, sequence); return err })
	return m, err
}

type linkMessage struct {
	l *link
	*message
}

func (m linkMessage) Ack(ctx context.Context) error {
	return m.l.call(func() error { m.l.answered(m.message); return m.message.Ack(ctx) })
}

func (m linkMessage) Nak(ctx context.Context, d time.Duration) error {
	return m.l.call(func() error { m.l.answered(m.message); return m.message.Nak(ctx, d) })
}

type linkRuns struct {
	l *link
	b *bucket
}

func (s linkRuns) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	err = s.l.call(func() (err error) { value, revision, err = s.b.Get(ctx, key); return err })
	return value, revision, err
}

func (s linkRuns) Put(ctx context.Context, key string, value []byte, revision uint64) (next uint64, err error) {
	err = s.l.call(func() (err error) { next, err = s.b.Put(ctx, key, value, revision); return err })
	return next, err
}

func (s linkRuns) Delete(ctx context.Context, key string, revision uint64) error {
	return s.l.call(func() error { return s.b.Delete(ctx, key, revision) })
}

// Watch passes changes on while the trigger lives, and now and then breaks.
func (s linkRuns) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(backlog.Change) bool) error {
	err := s.b.Watch(ctx, pattern, updatesOnly, func(c backlog.Change) bool {
		return !s.l.dead.Load() && (c.Synced || s.l.call(func() error { return nil }) == nil) && visit(c)
	})
	if s.l.dead.Load() {
		<-ctx.Done()
	}
	return err
}

type linkStream struct {
	l *link
	w *world
}

func (s linkStream) Publish(ctx context.Context, e events.Event) error {
	return s.l.call(func() error { return s.w.Publish(ctx, e) })
}

func (s linkStream) Published(ctx context.Context, t events.Type, id string, since time.Time) (out bool, err error) {
	err = s.l.call(func() (err error) { out, err = s.w.Published(ctx, t, id, since); return err })
	return out, err
}

// member is one running trigger.
type member struct {
	*Trigger
	link *link
	stop context.CancelFunc
	done chan struct{}
}

// quick is a configuration for tests.
func quick(name string) Config {
	return Config{
		Name: name, Place: "here", Lease: 3 * time.Second, SoftStop: 5 * time.Second, Reconcile: 50 * time.Millisecond, Grace: 300 * time.Millisecond,
		RetryDelay: 5 * time.Millisecond, RetryMaxDelay: 20 * time.Millisecond,
	}
}

// plain resolves a job to its image and nothing else; what the handler names is refused.
func plain(j Job) (run.Plan, error) {
	if j.Request.Run.Handler == "refused" {
		return run.Plan{}, builder.Errorf(builder.KindInvalidRequest, "planning the run", "there is no such handler")
	}
	plan := run.Plan{Image: j.Image, Name: j.Request.Run.Name}
	for name, value := range j.Secrets {
		plan.Secrets = append(plan.Secrets, run.Var{Name: name, Value: value})
	}
	if d, err := time.ParseDuration(j.Request.Run.Timeout); err == nil {
		plan.Limits.Timeout = d
	}
	return plan, nil
}

// join starts a trigger in the world; it ends with the test.
func (w *world) join(cfg Config, l *link, change func(*Trigger, *Deps)) *member {
	w.t.Helper()
	deps := Deps{
		Requests: linkQueue{l, w, w.queues["requests"]}, Cancels: linkQueue{l, w, w.queues["cancels"]}, Builds: linkQueue{l, w, w.queues["builds"]},
		Publisher: linkStream{l, w}, History: w, Runs: linkRuns{l, w.runs}, Logs: w.logs, Runner: runner{w.park, l}, Resolve: plain, Log: silent(w.t),
		Pin: func(_ context.Context, image, _ string) (string, error) {
			err := l.call(func() error { return nil })
			if err != nil {
				err = &builder.Error{Kind: builder.KindUnavailable, Op: "looking up", Err: err}
			}
			return image + "@" + digest, err
		},
	}
	if change != nil {
		change(nil, &deps)
	}
	t, err := New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(t, nil)
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{Trigger: t, link: l, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		_ = t.Run(ctx)
	}()
	w.t.Cleanup(m.end)
	return m
}

// end stops the trigger at once.
func (m *member) end() {
	m.stop()
	m.Interrupt()
	<-m.done
}
