package natsbus

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Headers of log messages.
const (
	headerAttempt = "Kiln-Attempt"
	headerLogEnd  = "Kiln-Log-End"
)

// LogStore keeps logs of builds, or of runs, in a stream: one message is one or more lines of
// text with the header Kiln-Attempt, so that `nats sub 'build.log.>'` shows a log as
// it is. An empty message with the header Kiln-Log-End ends the log of an attempt.
type LogStore struct {
	js     jetstream.JetStream
	stream string
	// subject is that of a log.
	subject func(id string) string
}

// Logs returns the store of build logs.
func (b *Bus) Logs() *LogStore {
	return &LogStore{js: b.js, stream: b.topology.logStream(), subject: b.Subjects().Log}
}

// validLogID keeps wildcards and dots out of subjects.
func validLogID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

// Open returns a writer for the log of one attempt. A write never blocks on the
// server and never fails: what does not fit into the backlog is dropped, and the log
// says so. Close waits until everything is stored, at most 10 s, and marks the end
// of the attempt's log. It has to be called, or Leave of a Log. The writer is safe for
// concurrent use.
func (l *LogStore) Open(id string, attempt int) io.WriteCloser { return l.Resume(id, attempt) }

// Log is a writer of LogStore.
type Log interface {
	io.WriteCloser
	// Leave is Close without the mark: another writer goes on with the attempt's log.
	Leave() error
}

// Resume is Open of a log that may be left to another writer.
func (l *LogStore) Resume(id string, attempt int) Log {
	if !validLogID(id) {
		return discard{io.Discard}
	}
	return newLogWriter(l.js, l.subject(id), strconv.Itoa(attempt))
}

// Stored is how many bytes the log of an attempt has, for a writer that goes on with it.
func (l *LogStore) Stored(ctx context.Context, id string, attempt int) (int64, error) {
	var n counter
	err := l.Read(ctx, id, attempt, false, &n)
	return int64(n), err
}

// counter counts what is written to it.
type counter int64

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

type discard struct{ io.Writer }

// Close does nothing.
func (discard) Close() error { return nil }

// Leave does nothing.
func (discard) Leave() error { return nil }

// Read copies the log of a build or run to out: that of one attempt, or of all if attempt
// is 0. With follow it goes on until the end of the attempt's log; with attempt 0
// until the first end that comes after everything that was stored at the call. It
// survives reconnects and restarts of the server, and writes nothing twice.
func (l *LogStore) Read(ctx context.Context, id string, attempt int, follow bool, out io.Writer) error {
	if !validLogID(id) {
		return fmt.Errorf("read log: %.140q is not the id of a log", id)
	}
	r := reader{js: l.js, stream: l.stream, subjects: []string{l.subject(id)}, follow: follow}
	var failed error
	err := r.run(ctx, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
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
