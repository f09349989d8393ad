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

// LogStore keeps build logs in the log stream: one message is one or more lines of
// text with the header Kiln-Attempt, so that `nats sub 'build.log.>'` shows a log as
// it is. An empty message with the header Kiln-Log-End ends the log of an attempt.
type LogStore struct {
	js       jetstream.JetStream
	topology Topology
}

// Logs returns the store of build logs.
func (b *Bus) Logs() *LogStore { return &LogStore{js: b.js, topology: b.topology} }

// validBuildID keeps wildcards and dots out of subjects.
func validBuildID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

// Open returns a writer for the log of one attempt. A write never blocks on the
// server and never fails: what does not fit into the backlog is dropped, and the log
// says so. Close waits until everything is stored, at most 10 s, and marks the end
// of the attempt's log. It has to be called. The writer is safe for concurrent use.
func (l *LogStore) Open(buildID string, attempt int) io.WriteCloser {
	if !validBuildID(buildID) {
		return discard{io.Discard}
	}
	return newLogWriter(l.js, l.topology.Subjects().Log(buildID), strconv.Itoa(attempt))
}

type discard struct{ io.Writer }

// Close does nothing.
func (discard) Close() error { return nil }

// Read copies the log of a build to out: that of one attempt, or of all if attempt
// is 0. With follow it goes on until the end of the attempt's log; with attempt 0
// until the first end that comes after everything that was stored at the call. It
// survives reconnects and restarts of the server, and writes nothing twice.
func (l *LogStore) Read(ctx context.Context, buildID string, attempt int, follow bool, out io.Writer) error {
	if !validBuildID(buildID) {
		return fmt.Errorf("read log: %.140q is not a build id", buildID)
	}
	r := reader{js: l.js, stream: l.topology.logStream(), subjects: []string{l.topology.Subjects().Log(buildID)}, follow: follow}
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
