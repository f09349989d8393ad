package sandbox

import (
	"fmt"
	"io"
	"os"
	"time"

	"kiln/builder/kaniko"
)

// stream is what a container writes, on its way to the log.
type stream struct {
	// in is the end that the container gets.
	in, out *os.File
	done    chan struct{}
}

// readLog returns the stream that fills log. The log is closed when it has ended.
func (b *build) readLog(log *kaniko.Log) (*stream, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make log pipe: %w", err)
	}
	s := &stream{in: in, out: out, done: make(chan struct{})}
	source := io.Reader(out)
	if r := b.engine.record; r != nil {
		source = io.TeeReader(out, &r.raw)
	}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(log, source)
		log.Close()
	}()
	return s, nil
}

// finish waits until everything was read. When something still holds the stream
// open after the grace, the rest is dropped.
func (s *stream) finish(grace time.Duration) {
	_ = s.in.Close()
	_ = s.out.SetReadDeadline(time.Now().Add(grace))
	<-s.done
	_ = s.out.Close()
}
