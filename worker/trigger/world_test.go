package trigger

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"kiln/events"
	"kiln/worker"
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
