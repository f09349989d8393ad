package sandbox

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder/run"
	"kiln/builder/run/launcher"
)

// maxLogLine is the longest line that is passed on whole; a longer one comes in pieces.
const maxLogLine = 256 << 10

// tail passes on an attempt's log from its beginning, and tells of the start of its
// process, as both come about.
type tail struct {
	attempt attempt
	watch   run.Watch
	log     *os.File
	// events becomes readable when the kernel saw a change.
	events *os.File
	// line is the beginning of one whose end has not come.
	line []byte
	told bool

	once sync.Once
	// quit is closed when there is nothing more to come; drain says that what there is
	// is to be passed on to its end.
	quit  chan struct{}
	drain bool
	done  chan struct{}
}

// follow starts to follow. The caller ends it by finish or stop.
func (a attempt) follow(watch run.Watch) (*tail, error) {
	if watch.Logs == nil {
		watch.Logs = io.Discard
	}
	t := &tail{attempt: a, watch: watch, quit: make(chan struct{}), done: make(chan struct{})}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	t.events = os.NewFile(uintptr(fd), "inotify")
	_, err = unix.InotifyAddWatch(fd, a.path(logFile), unix.IN_MODIFY)
	if err == nil {
		t.log, err = a.runner.state.root.Open(a.file(logFile))
	}
	if err != nil {
		_ = t.events.Close()
		return nil, err
	}
	// There is none when the attempt has ended.
	_, _ = unix.InotifyAddWatch(fd, a.path(inGuest(launcher.Out)), unix.IN_CLOSE_WRITE)
	go t.run()
	return t, nil
}

// finish returns when the log was passed on to its end, which is there.
func (t *tail) finish() { t.end(true) }

// stop returns when nothing more is passed on.
func (t *tail) stop() { t.end(false) }

func (t *tail) end(drain bool) {
	t.once.Do(func() {
		t.drain = drain
		close(t.quit)
		_ = t.events.SetReadDeadline(time.Now())
		<-t.done
		_ = t.events.Close()
		_ = t.log.Close()
	})
}

func (t *tail) run() {
	defer close(t.done)
	for {
		over := t.over()
		// Between looking whether it is over and copying, nothing can be lost.
		t.tell()
		t.copy()
		if over {
			if t.drain && len(t.line) > 0 {
				t.pass(append(t.line, '\n'))
			}
			return
		}
		t.wait()
	}
}

func (t *tail) over() bool {
	select {
	case <-t.quit:
		return true
	default:
		return false
	}
}

// tell calls Started once the launcher has said when.
func (t *tail) tell() {
	if t.told || t.watch.Started == nil {
		return
	}
	at := t.attempt.started()
	if f, ended := t.attempt.ending(); ended && f.Kind == "" {
		at = f.Result.Started
	}
	if !at.IsZero() {
		t.told = true
		t.watch.Started(at)
	}
}

// copy passes on the whole lines that are new.
func (t *tail) copy() {
	buf := make([]byte, 32<<10)
	for {
		n, err := t.log.Read(buf)
		t.line = append(t.line, buf[:n]...)
		if end := bytes.LastIndexByte(t.line, '\n') + 1; end > 0 {
			t.pass(t.line[:end])
			t.line = append(t.line[:0], t.line[end:]...)
		}
		if len(t.line) > maxLogLine {
			t.pass(append(t.line, '\n'))
			t.line = t.line[:0]
		}
		if err != nil || n == 0 {
			return
		}
	}
}

// pass writes lines on. A log that cannot be written must not fail a run.
func (t *tail) pass(lines []byte) { _, _ = t.watch.Logs.Write(lines) }

// wait returns after a change, or when it is over.
func (t *tail) wait() {
	buf := make([]byte, 4096)
	if _, err := t.events.Read(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		// Without events there is only the end to wait for.
		<-t.quit
	}
}
