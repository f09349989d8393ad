package trigger

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"kiln/events"
	"kiln/worker"
	"kiln/worker/backlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is what outlives every trigger: streams, queues, store, logs, processes, and a
// build worker.
type world struct {
	t    *testing.T
	runs *bucket
	logs *logs
	park *park

	mu     sync.Mutex
	more   chan struct{} // closed and replaced whenever something is stored
	stored map[string][]storedEvent
	ids    map[string]bool
	queues map[string]*queue
	// build answers a request for a build with its terminal event; nil: none comes.
	build func(id string, r *events.BuildRequest) *events.Event
}

type storedEvent struct {
	events.Event
	raw      events.Message
	sequence uint64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, runs: newBucket(), logs: &logs{text: map[string]*bytes.Buffer{}}, more: make(chan struct{}),
		stored: map[string][]storedEvent{}, ids: map[string]bool{}, queues: map[string]*queue{},
	}
	w.park = newPark(w)
	w.build = func(id string, _ *events.BuildRequest) *events.Event { return new(built(id)) }
	for _, name := range []string{"requests", "cancels", "builds"} {
		w.queues[name] = &queue{ch: make(chan *message, 10_000)}
	}
	return w
}

func streamOf(typ events.Type) string { return strings.ToUpper(strings.SplitN(string(typ), ".", 2)[0]) }

// publish stores an event as the server does, hands it to the queue that is for it, and
// lets the build worker answer.
func (w *world) publish(e events.Event) *message {
	m, err := events.Encode(e, events.Subjects{})
	if err != nil {
		panic(err)
	}
	return w.store(m, e)
}

func (w *world) store(m events.Message, e events.Event) *message {
	w.mu.Lock()
	defer w.mu.Unlock()
	stream := streamOf(e.Type)
	if id := string(e.Type) + e.ID; e.ID != "" && w.ids[id] {
		return nil
	} else if e.ID != "" {
		w.ids[id] = true
	}
	sequence := uint64(len(w.stored[stream]) + 1)
	m.FallbackID, m.Time = fmt.Sprintf("seq:%s:%d", stream, sequence), time.Now().UTC()
	w.stored[stream] = append(w.stored[stream], storedEvent{e, m, sequence})
	close(w.more)
	w.more = make(chan struct{})
	var q *queue
	switch e.Type { //nolint:exhaustive // others go to nobody
	case events.TypeRunRequested:
		q = w.queues["requests"]
	case events.TypeRunCancel:
		q = w.queues["cancels"]
	case events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled:
		q = w.queues["builds"]
	case events.TypeBuildRequested:
		r, _ := e.Data.(*events.BuildRequest)
		if answer := w.build; answer != nil {
			time.AfterFunc(time.Millisecond, func() {
				if done := answer(e.ID, r); done != nil {
					w.publish(*done)
				}
			})
		}
	}
	if q == nil {
		return nil
	}
	msg := &message{q: q, event: m, sequence: sequence, acked: make(chan struct{})}
	q.ch <- msg
	return msg
}

// of returns the stored events of the given types in order.
func (w *world) of(types ...events.Type) []events.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []events.Event
	for _, e := range w.stored[streamOf(types[0])] {
		if slices.Contains(types, e.Type) {
			out = append(out, e.Event)
		}
	}
	return out
}

// await waits until ok holds, looking whenever something is stored or changed.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		more := w.more
		w.mu.Unlock()
		changed := w.runs.changedNext()
		if ok() {
			return
		}
		select {
		case <-more:
		case <-changed:
		case <-w.park.changedNext():
		case <-deadline:
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// terminal waits for the end of a run.
func (w *world) terminal(runID string) events.Event {
	w.t.Helper()
	var found events.Event
	w.await("the end of "+runID, func() bool {
		for _, e := range w.of(events.TypeRunCompleted, events.TypeRunFailed, events.TypeRunCanceled) {
			if strings.TrimSuffix(e.ID, "."+string(e.Type)) == runID {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// queue brings a message again that was not answered.
type queue struct{ ch chan *message }

type message struct {
	q        *queue
	sequence uint64
	event    events.Message
	mu       sync.Mutex
	acked    chan struct{}
	done     bool
}

func (q *queue) Next(ctx context.Context) (worker.Message, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case m := <-q.ch:
		return m, nil
	}
}

func (m *message) Event() events.Message            { return m.event }
func (m *message) Sequence() uint64                 { return m.sequence }
func (m *message) InProgress(context.Context) error { return nil }

func (m *message) Ack(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.done {
		m.done = true
		close(m.acked)
	}
	return nil
}

func (m *message) Nak(_ context.Context, d time.Duration) error {
	time.AfterFunc(d, func() { m.q.ch <- m })
	return nil
}

// Publish implements worker.Publisher.
func (w *world) Publish(_ context.Context, e events.Event) error {
	w.publish(e)
	return nil
}

// Published implements worker.Publisher.
func (w *world) Published(_ context.Context, typ events.Type, id string, _ time.Time) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[string(typ)+id], nil
}

// Scan implements worker.History of builds.
func (w *world) Scan(_ context.Context, types []events.Type, _ time.Time, after uint64, visit func(events.Message) bool) error {
	w.mu.Lock()
	all := slices.Clone(w.stored["BUILD"])
	w.mu.Unlock()
	for _, e := range all {
		if e.sequence >= after && slices.Contains(types, e.Type) && !visit(e.raw) {
			break
		}
	}
	return nil
}

// Read implements worker.Requests together with the queue.
func (w *world) Read(_ context.Context, sequence uint64) (events.Message, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.stored["RUN"] {
		if e.sequence == sequence {
			return e.raw, nil
		}
	}
	return events.Message{}, worker.ErrNotFound
}

// bucket is a Runs in memory.
type bucket struct {
	mu      sync.Mutex
	values  map[string][]byte
	revs    map[string]uint64
	rev     uint64
	history []backlog.Change
	more    chan struct{}
}

func newBucket() *bucket {
	return &bucket{values: map[string][]byte{}, revs: map[string]uint64{}, more: make(chan struct{})}
}

func (b *bucket) changedNext() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.more
}

func (b *bucket) Get(_ context.Context, key string) ([]byte, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.values[key]
	if !ok {
		return nil, 0, worker.ErrNotFound
	}
	return bytes.Clone(v), b.revs[key], nil
}

func (b *bucket) Put(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.revs[key] != revision {
		return 0, worker.ErrConflict
	}
	b.rev++
	b.values[key], b.revs[key] = bytes.Clone(value), b.rev
	b.changed(backlog.Change{Key: key, Value: bytes.Clone(value), Revision: b.rev})
	return b.rev, nil
}

func (b *bucket) Delete(_ context.Context, key string, revision uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if revision == 0 || b.revs[key] != revision {
		return worker.ErrConflict
	}
	b.rev++
	delete(b.values, key)
	delete(b.revs, key)
	b.changed(backlog.Change{Key: key, Deleted: true, Revision: b.rev})
	return nil
}

func (b *bucket) changed(c backlog.Change) {
	b.history = append(b.history, c)
	close(b.more)
	b.more = make(chan struct{})
}

func (b *bucket) keys(prefix string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(b.values)), func(k string) bool { return !strings.HasPrefix(k, prefix) })
}

// record returns what is stored of a run.
func (b *bucket) record(runID string) record {
	raw, revision, err := b.Get(context.Background(), runPrefix+events.RunKey(runID))
	if err != nil {
		return record{}
	}
	s, err := decode("x", raw, revision)
	if err != nil {
		panic(err)
	}
	return s.record
}

// Watch implements Runs.
func (b *bucket) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(backlog.Change) bool) error {
	prefix := strings.TrimSuffix(pattern, "*")
	b.mu.Lock()
	var first []backlog.Change
	for key, value := range b.values {
		if !updatesOnly && strings.HasPrefix(key, prefix) {
			first = append(first, backlog.Change{Key: key, Value: bytes.Clone(value), Revision: b.revs[key]})
		}
	}
	next := len(b.history)
	b.mu.Unlock()
	slices.SortFunc(first, func(a, b backlog.Change) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, c := range append(first, backlog.Change{Synced: true}) {
		if !visit(c) {
			return nil
		}
	}
	for {
		b.mu.Lock()
		changes, more := b.history[next:len(b.history):len(b.history)], b.more
		next = len(b.history)
		b.mu.Unlock()
		for _, c := range changes {
			if strings.HasPrefix(c.Key, prefix) && !visit(c) {
				return nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// logs is a Logs in memory; an end of an attempt is the line "-- end".
type logs struct {
	mu   sync.Mutex
	text map[string]*bytes.Buffer
}

func (l *logs) Resume(key string, attempt int) Log {
	return &attemptLog{l, fmt.Sprintf("%s %d", key, attempt)}
}

func (l *logs) Stored(_ context.Context, key string, attempt int) (int64, error) {
	return int64(len(l.of(fmt.Sprintf("%s %d", key, attempt)))), nil
}

func (l *logs) of(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text[name] == nil {
		return ""
	}
	return l.text[name].String()
}

type attemptLog struct {
	l    *logs
	name string
}

func (a *attemptLog) Write(p []byte) (int, error) {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	if a.l.text[a.name] == nil {
		a.l.text[a.name] = &bytes.Buffer{}
	}
	return a.l.text[a.name].Write(p)
}

func (a *attemptLog) Close() error {
	_, err := io.WriteString(a, "-- end\n")
	return err
}

func (a *attemptLog) Leave() error { return nil }

// silent is a logger for nobody.
func silent(t *testing.T) zerolog.Logger {
	t.Helper()
	if testing.Verbose() {
		return zerolog.New(zerolog.NewTestWriter(t))
	}
	return zerolog.Nop()
}
