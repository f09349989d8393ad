package natsbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of a log writer: how long a line may wait for others, how large one
// message is, how much may wait while the server cannot be reached, how long one
// message is tried while no stream takes it, and how long Close waits.
const (
	logFlush   = 100 * time.Millisecond
	logChunk   = 32 << 10
	logBacklog = 4 << 20
	logNoTaker = 5 * time.Second
	logClose   = 10 * time.Second
)

// logWriter collects lines and publishes them in order from one goroutine.
type logWriter struct {
	js               jetstream.JetStream
	subject, attempt string

	mu      sync.Mutex
	pending bytes.Buffer
	// dropped counts bytes that are lost and not yet told; midLine is true if the
	// newest byte that was kept ends no line.
	dropped int
	midLine bool

	// cancel gives up what is still to be published.
	cancel  context.CancelFunc
	wake    chan struct{}
	full    chan struct{}
	closing chan struct{}
	closed  sync.Once
	// left is set before closing is closed, when the log has no end yet.
	left bool
	done chan struct{}
}

func newLogWriter(js jetstream.JetStream, subject, attempt string) *logWriter {
	ctx, cancel := context.WithCancel(context.Background())
	w := &logWriter{
		cancel: cancel, js: js, subject: subject, attempt: attempt, wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
		closing: make(chan struct{}), done: make(chan struct{}),
	}
	go w.pump(ctx)
	return w
}

// Write takes text in any chunks.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.tellDropped()
	// Once something was dropped there has to be room again for more than one line.
	if w.dropped > 0 || w.pending.Len()+len(p) > logBacklog {
		w.dropped += len(p)
	} else if len(p) > 0 {
		w.pending.Write(p)
		w.midLine = p[len(p)-1] != '\n'
	}
	full := w.pending.Len() >= logChunk
	w.mu.Unlock()
	signal(w.wake)
	if full {
		signal(w.full)
	}
	return len(p), nil
}

// tellDropped says in the log itself how much is missing, in the place where it is
// missing, once there is room. The caller holds mu.
func (w *logWriter) tellDropped() {
	if w.dropped == 0 || w.pending.Len() > logBacklog/2 {
		return
	}
	if w.midLine {
		w.pending.WriteByte('\n')
	}
	fmt.Fprintf(&w.pending, "kiln: %d bytes of log are missing here: the server did not take them in time\n", w.dropped)
	w.dropped, w.midLine = 0, false
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close ends the log.
func (w *logWriter) Close() error { return w.end(false) }

// Leave stores what there is and leaves the log to another writer.
func (w *logWriter) Leave() error { return w.end(true) }

func (w *logWriter) end(left bool) error {
	w.closed.Do(func() {
		w.left = left
		close(w.closing)
	})
	deadline := time.AfterFunc(logClose, w.cancel)
	defer deadline.Stop()
	<-w.done
	w.cancel()
	return nil
}

// pump publishes what is pending until the writer is closed.
func (w *logWriter) pump(ctx context.Context) {
	defer close(w.done)
	for open := true; open; {
		select {
		case <-w.closing:
			open = false
		case <-w.wake:
			select { // let some lines come together
			case <-w.closing:
			case <-w.full:
			case <-time.After(logFlush):
			}
		}
		for chunk := w.take(!open); len(chunk) > 0; chunk = w.take(!open) {
			if !w.publish(ctx, chunk, nats.Header{headerAttempt: {w.attempt}}) {
				w.mu.Lock()
				w.dropped += len(chunk)
				w.mu.Unlock()
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
	if !w.left {
		w.publish(ctx, nil, nats.Header{headerAttempt: {w.attempt}, headerLogEnd: {"true"}})
	}
}

// take cuts the next chunk off the backlog: whole lines, unless it is the last or a
// line is longer than a chunk.
func (w *logWriter) take(last bool) []byte {
	limit := logChunk
	if most := w.js.Conn().MaxPayload() / 2; most > 0 {
		limit = min(limit, int(most))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tellDropped()
	all := w.pending.Bytes()
	n := min(len(all), limit)
	if end := bytes.LastIndexByte(all[:n], '\n'); end >= 0 {
		n = end + 1
	} else if n < limit && !last {
		return nil
	} else if n < len(all) {
		n = runeStart(all, n)
	}
	return bytes.Clone(w.pending.Next(n))
}

// runeStart moves a cut so that it splits no character, if all is text.
func runeStart(all []byte, n int) int {
	for back := range utf8.UTFMax {
		if n-back > 0 && utf8.RuneStart(all[n-back]) {
			return n - back
		}
	}
	return n
}

// publish stores one message, trying again until ctx ends or no stream takes it for
// a while. The message id makes a repetition harmless.
func (w *logWriter) publish(ctx context.Context, data []byte, header nats.Header) (stored bool) {
	msg := &nats.Msg{Subject: w.subject, Header: header, Data: data}
	id := nats.NewInbox()
	var noTaker time.Time
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, storeTry)
		_, err := w.js.PublishMsg(try, msg, jetstream.WithMsgID(id))
		cancel()
		refused, _ := errors.AsType[*jetstream.APIError](err)
		switch {
		case err == nil:
			return true
		case refused != nil && refused.Code < 500, errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject):
			return false
		case !errors.Is(err, jetstream.ErrNoStreamResponse):
			noTaker = time.Time{}
		case noTaker.IsZero():
			noTaker = time.Now()
		case time.Since(noTaker) > logNoTaker:
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return false
}
