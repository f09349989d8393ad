package natsbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of log messages.
const (
	headerAttempt = "Kiln-Attempt"
	headerLogEnd  = "Kiln-Log-End"
)

// Bounds of a log writer: how long a line may wait for others, how large one
// message is, and how much may wait while the server cannot be reached.
const (
	logFlush   = 100 * time.Millisecond
	logChunk   = 32 << 10
	logBacklog = 4 << 20
)

// LogStore keeps build logs in the log stream.
type LogStore struct {
	js       jetstream.JetStream
	topology Topology
}

// Logs returns the store of build logs.
func (b *Bus) Logs() *LogStore { return &LogStore{js: b.js, topology: b.topology} }

// Open returns a writer for the log of one attempt. A write never blocks on the
// server and never fails: what does not fit into the backlog is dropped, and the log
// says so. Close waits until everything is stored, at most 10 s, and marks the end
// of the attempt's log.
func (l *LogStore) Open(buildID string, attempt int) io.WriteCloser {
	w := &logWriter{
		js: l.js, subject: l.topology.Subjects().Log(buildID), attempt: strconv.Itoa(attempt),
		wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go w.pump()
	return w
}

// logWriter collects lines and publishes them in order from one goroutine.
type logWriter struct {
	js               jetstream.JetStream
	subject, attempt string

	mu      sync.Mutex
	pending bytes.Buffer
	dropped int

	wake    chan struct{}
	closing chan struct{}
	closed  sync.Once
	done    chan struct{}
}

// Write takes text in any chunks.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.pending.Len()+len(p) > logBacklog {
		w.dropped += len(p)
	} else {
		w.pending.Write(p)
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Close ends the log.
func (w *logWriter) Close() error {
	w.closed.Do(func() { close(w.closing) })
	<-w.done
	return nil
}

func (w *logWriter) pump() {
	defer close(w.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for open := true; open; {
		select {
		case <-w.closing:
			open = false
			deadline := time.AfterFunc(10*time.Second, cancel)
			defer deadline.Stop()
		case <-w.wake:
			select { // let some lines come together
			case <-w.closing:
			case <-time.After(logFlush):
			}
		}
		for chunk := w.take(!open); len(chunk) > 0; chunk = w.take(!open) {
			w.publish(ctx, chunk, nats.Header{headerAttempt: {w.attempt}})
		}
	}
	w.publish(ctx, nil, nats.Header{headerAttempt: {w.attempt}, headerLogEnd: {"true"}})
}

// take cuts the next chunk off the backlog: whole lines, unless it is the last.
func (w *logWriter) take(last bool) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dropped > 0 && w.pending.Len() < logBacklog/2 {
		fmt.Fprintf(&w.pending, "kiln: %d bytes of log were dropped here: the server did not take them in time\n", w.dropped)
		w.dropped = 0
	}
	all := w.pending.Bytes()
	n := min(len(all), logChunk)
	if end := bytes.LastIndexByte(all[:n], '\n'); end >= 0 {
		n = end + 1
	} else if n < logChunk && !last {
		return nil
	}
	return bytes.Clone(w.pending.Next(n))
}

// publish stores one message, trying again until ctx ends. The message id makes a
// repetition harmless.
func (w *logWriter) publish(ctx context.Context, data []byte, header nats.Header) {
	msg := &nats.Msg{Subject: w.subject, Header: header, Data: data}
	id := nats.NewInbox()
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := w.js.PublishMsg(try, msg, jetstream.WithMsgID(id))
		cancel()
		if err == nil || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrConnectionClosed) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Read copies the log of a build to out: that of one attempt, or of all if attempt
// is 0. With follow it goes on until the end of the attempt's log; with attempt 0
// until the first end that comes after everything that was stored at the call.
func (l *LogStore) Read(ctx context.Context, buildID string, attempt int, follow bool, out io.Writer) error {
	subject := l.topology.Subjects().Log(buildID)
	var failed error
	err := readStream(ctx, l.js, l.topology.logStream(), []string{subject}, Start{}, follow, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		if n, _ := strconv.Atoi(msg.Headers().Get(headerAttempt)); attempt != 0 && n != attempt {
			return true
		}
		if msg.Headers().Get(headerLogEnd) != "" {
			return attempt == 0 && meta.NumPending > 0
		}
		_, failed = out.Write(msg.Data())
		return failed == nil
	})
	if failed != nil {
		return fmt.Errorf("write log: %w", failed)
	}
	return err
}
