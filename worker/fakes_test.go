package worker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// memQueue is a queue in memory: Nak brings a message back after its delay.
type memQueue struct {
	ch chan *memMessage
	// last is the sequence of the stream, which other queues share.
	last    *atomic.Uint64
	backlog *memBucket
	mu      sync.Mutex
	stored  map[uint64]events.Message
	naks    []time.Duration
	acks    int
}

func newMemQueue(last *atomic.Uint64, b *memBucket) *memQueue {
	return &memQueue{ch: make(chan *memMessage, 20_000), last: last, backlog: b, stored: map[uint64]events.Message{}}
}

func (q *memQueue) add(m events.Message) *memMessage {
	q.mu.Lock()
	defer q.mu.Unlock()
	msg := memMessage{q: q, event: m, sequence: q.last.Add(1)}.init()
	q.stored[msg.sequence] = m
	q.ch <- msg
	return msg
}

// Read implements Requests.
func (q *memQueue) Read(_ context.Context, sequence uint64) (events.Message, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, ok := q.stored[sequence]
	if !ok {
		return m, ErrNotFound
	}
	return m, nil
}

func (q *memQueue) Next(ctx context.Context) (Message, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case m := <-q.ch:
		return m, nil
	}
}

func (q *memQueue) counts() (acks int, naks []time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.acks, append([]time.Duration(nil), q.naks...)
}

type memMessage struct {
	q        *memQueue
	sequence uint64
	event    events.Message
	acked    chan struct{} // closed by the first Ack
	nakked   chan struct{}
	// lostAck makes the next Ack fail after the queue forgot about it, so that the
	// message comes again.
	lostAck bool
	// deaf makes InProgress fail.
	deaf bool
	once bool // no redelivery after a Nak
}

func (m *memMessage) Event() events.Message { return m.event }
func (m *memMessage) Sequence() uint64      { return m.sequence }
func (m *memMessage) InProgress(context.Context) error {
	if m.deaf {
		return errors.New("no connection")
	}
	return nil
}

func (m memMessage) init() *memMessage {
	m.acked, m.nakked = make(chan struct{}), make(chan struct{}, 1000)
	return &m
}

func (m *memMessage) Ack(context.Context) error {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	if m.lostAck {
		m.lostAck = false
		m.q.ch <- m
		return errors.New("no answer to the ack")
	}
	m.q.acks++
	select {
	case <-m.acked:
	default:
		close(m.acked)
	}
	return nil
}

func (m *memMessage) Nak(_ context.Context, d time.Duration) error {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	m.q.naks = append(m.q.naks, d)
	m.nakked <- struct{}{}
	if !m.once {
		time.AfterFunc(d, func() { m.q.ch <- m })
	}
	return nil
}

func (m *memMessage) await(t *testing.T, want string) {
	t.Helper()
	answer := m.acked
	if want == "nak" {
		answer = m.nakked
	}
	select {
	case <-answer:
	case <-time.After(20 * time.Second):
		t.Fatalf("message %d was not answered with %s in time", m.sequence, want)
	}
}

// end waits until the message is answered for good and its request is out of the backlog.
func (m *memMessage) end(t *testing.T) {
	t.Helper()
	m.await(t, "ack")
	timeout := time.After(20 * time.Second)
	for {
		m.q.backlog.mu.Lock()
		_, there := m.q.backlog.values[backlog.Key(m.sequence)]
		more := m.q.backlog.more
		m.q.backlog.mu.Unlock()
		if !there {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("request %d is still in the backlog", m.sequence)
		}
	}
}

// memStream stores published events as the wire has them.
type memStream struct {
	// last is the sequence of the stream; nil: events have none.
	last      *atomic.Uint64
	mu        sync.Mutex
	stored    []events.Event
	sequences []uint64
	ids       map[string]bool
	// fail, if set, is asked before each publish; a true "after" stores first.
	fail func(e events.Event) (err error, after bool)
	// forget drops the duplicate window.
	forget bool
}

func (s *memStream) Publish(_ context.Context, e events.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	var after bool
	if s.fail != nil {
		err, after = s.fail(e)
	}
	if err != nil && !after {
		return err
	}
	if s.ids == nil {
		s.ids = map[string]bool{}
	}
	if !s.ids[e.ID] || s.forget {
		s.stored = append(s.stored, e)
		s.sequences = append(s.sequences, s.last.Add(1))
	}
	s.ids[e.ID] = true
	return err
}

func (s *memStream) Published(_ context.Context, typ events.Type, id string, _ time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.stored {
		if e.ID == id && e.Type == typ {
			return true, nil
		}
	}
	return false, nil
}

func (s *memStream) of(types ...events.Type) []events.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []events.Event
	for _, e := range s.stored {
		for _, typ := range types {
			if e.Type == typ {
				out = append(out, e)
			}
		}
	}
	return out
}

// memHistory is the stream of requests and events.
type memHistory struct {
	queue  *memQueue
	stream *memStream
}

// Scan implements History.
func (h memHistory) Scan(_ context.Context, types []events.Type, _ time.Time, after uint64, visit func(events.Message) bool) error {
	all := map[uint64]events.Message{}
	h.queue.mu.Lock()
	maps.Copy(all, h.queue.stored)
	h.queue.mu.Unlock()
	h.stream.mu.Lock()
	for i, e := range h.stream.stored {
		m, err := events.Encode(e, events.Subjects{})
		if err != nil {
			panic(err)
		}
		all[h.stream.sequences[i]] = m
	}
	h.stream.mu.Unlock()
	for _, sequence := range slices.Sorted(maps.Keys(all)) {
		m := all[sequence]
		m.FallbackID = fmt.Sprintf("seq:BUILD:%d", sequence)
		if typ, _ := (events.Subjects{}).Type(m.Subject); sequence < after || !slices.Contains(types, typ) {
			continue
		}
		if !visit(m) {
			break
		}
	}
	return nil
}

// memBucket is a compare-and-set store with scripted faults.
type memBucket struct {
	mu     sync.Mutex
	values map[string][]byte
	revs   map[string]uint64
	rev    uint64
	// history is every change; more is closed and replaced with each.
	history []backlog.Change
	more    chan struct{}
	puts    int
	// fail, if set, is asked before each Put; a true "after" stores first.
	fail func(key string, value []byte) (err error, after bool)
}

func newMemBucket() *memBucket {
	return &memBucket{values: map[string][]byte{}, revs: map[string]uint64{}, more: make(chan struct{})}
}

func (l *memBucket) Get(_ context.Context, key string) ([]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.values[key]
	if !ok {
		return nil, 0, ErrNotFound
	}
	return bytes.Clone(v), l.revs[key], nil
}

func (l *memBucket) Put(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	var after bool
	if l.fail != nil {
		err, after = l.fail(key, value)
	}
	if err != nil && !after {
		return 0, err
	}
	if l.revs[key] != revision {
		return 0, ErrConflict
	}
	l.puts++
	l.rev++
	l.values[key], l.revs[key] = bytes.Clone(value), l.rev
	l.changed(backlog.Change{Key: key, Value: bytes.Clone(value), Revision: l.rev})
	return l.rev, err
}

func (l *memBucket) Delete(_ context.Context, key string, revision uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision == 0 || l.revs[key] != revision {
		return ErrConflict
	}
	l.rev++
	delete(l.values, key)
	delete(l.revs, key)
	l.changed(backlog.Change{Key: key, Deleted: true, Revision: l.rev})
	return nil
}

func (l *memBucket) changed(c backlog.Change) {
	l.history = append(l.history, c)
	close(l.more)
	l.more = make(chan struct{})
}

// keys returns the keys that have a value.
func (l *memBucket) keys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.values))
}

// watch shows what is there, if snapshot is set, and then what changes.
func (l *memBucket) watch(ctx context.Context, prefix string, snapshot bool, visit func(backlog.Change) bool) error {
	l.mu.Lock()
	var first []backlog.Change
	for key, value := range l.values {
		if snapshot && strings.HasPrefix(key, prefix) {
			first = append(first, backlog.Change{Key: key, Value: bytes.Clone(value), Revision: l.revs[key]})
		}
	}
	next := len(l.history)
	l.mu.Unlock()
	slices.SortFunc(first, func(a, b backlog.Change) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, c := range append(first, backlog.Change{Synced: true}) {
		if !visit(c) {
			return nil
		}
	}
	for {
		l.mu.Lock()
		changes, more := l.history[next:len(l.history):len(l.history)], l.more
		next = len(l.history)
		l.mu.Unlock()
		for _, c := range changes {
			if ctx.Err() != nil {
				return ctx.Err()
			}
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

// memLedger is a Ledger in memory.
type memLedger struct{ *memBucket }

func (l memLedger) Watch(ctx context.Context, pattern string, visit func(backlog.Change) bool) error {
	return l.watch(ctx, strings.TrimSuffix(pattern, "*"), false, visit)
}

// memBacklog is a Backlog in memory.
type memBacklog struct{ *memBucket }

func (l memBacklog) Watch(ctx context.Context, visit func(backlog.Change) bool) error {
	return l.watch(ctx, "", true, visit)
}

// memLogs keeps logs by build and attempt.
type memLogs struct {
	mu     sync.Mutex
	text   map[string]*bytes.Buffer
	closed int
}

func (l *memLogs) Open(buildID string, _ int) io.WriteCloser {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == nil {
		l.text = map[string]*bytes.Buffer{}
	}
	if l.text[buildID] == nil {
		l.text[buildID] = &bytes.Buffer{}
	}
	return &memLog{l: l, id: buildID}
}

type memLog struct {
	l  *memLogs
	id string
}

func (m *memLog) Write(p []byte) (int, error) {
	m.l.mu.Lock()
	defer m.l.mu.Unlock()
	return m.l.text[m.id].Write(p)
}

func (m *memLog) Close() error {
	m.l.mu.Lock()
	defer m.l.mu.Unlock()
	m.l.closed++
	return nil
}

func (l *memLogs) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	for _, text := range l.text {
		b.Write(text.Bytes())
	}
	return b.String()
}

// storeOf has the same secrets for every project.
type storeOf map[string]string

func (s storeOf) Secrets(context.Context, string) (map[string]string, error) { return s, nil }

// failingStore cannot be read.
type failingStore struct{}

func (failingStore) Secrets(context.Context, string) (map[string]string, error) {
	return nil, builder.Errorf(builder.KindUnavailable, "reading secrets", "no such folder")
}
