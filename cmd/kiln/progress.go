package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
)

// progress prints log lines, and on a terminal a status line below them. Safe for
// concurrent use.
type progress struct {
	mu      sync.Mutex
	status  io.Writer // where the status line goes, nil without a terminal
	out     io.Writer
	notes   io.Writer
	late    string
	state   string
	since   time.Time
	told    bool // why the request waits
	done    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once
}

// patience is how long a request may wait before the user is told why.
const patience = 5 * time.Second

// newProgress prints log lines to out and notes to errs; quiet drops log lines. Late is
// what it says when nothing happens for a while.
func newProgress(errs, out io.Writer, quiet bool, late string) *progress {
	p := &progress{out: out, notes: errs, late: late, since: time.Now(), done: make(chan struct{})}
	if quiet {
		p.out = io.Discard
	}
	if cli.IsTerminal(errs) {
		p.status = errs
	}
	p.stopped.Go(p.tick)
	return p
}

func (p *progress) tick() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-ticker.C:
		}
		p.mu.Lock()
		if p.state == "" && !p.told && time.Since(p.since) > patience {
			p.told = true
			p.clear()
			fmt.Fprintln(p.notes, p.late)
		}
		p.draw()
		p.mu.Unlock()
	}
}

// Write prints log text. It never fails: the log is not the result.
func (p *progress) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	_, _ = p.out.Write(text)
	p.draw()
	return len(text), nil
}

// note prints a line about the request itself.
func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintln(p.notes, text)
	p.draw()
}

// queued notes what the request waits for.
func (p *progress) queued(e *events.BuildQueued) {
	p.note(waiting(e))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = true
}

// waiting is what the request waits for, in words.
func waiting(e *events.BuildQueued) string {
	text := strings.TrimSuffix(e.Reason, ".")
	if e.Position > 0 {
		text += fmt.Sprintf("; position %d", e.Position)
	}
	if !e.EstimatedStart.IsZero() {
		text += ", starts about " + e.EstimatedStart.Local().Format(time.TimeOnly)
	}
	return text
}

// building notes that an attempt began.
func (p *progress) building(e *events.BuildStarted) {
	p.note(fmt.Sprintf("attempt %d by %s on %s, from %s", e.Attempt, e.Engine, e.Worker, e.Base.Ref))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.since = "building", time.Now()
}

// running notes that the process of a run began.
func (p *progress) running(e *events.RunStarted) {
	p.note(fmt.Sprintf("attempt %d by %s on %s, from %s", e.Attempt, e.Runner, e.Trigger, e.ImageRef))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.since = "running", time.Now()
}

// to is p with another place for what is written.
func (p *progress) to(out io.Writer) io.Writer { return passage{p, out} }

type passage struct {
	p   *progress
	out io.Writer
}

// Write implements io.Writer. It never fails, as that of progress.
func (w passage) Write(text []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.clear()
	_, _ = w.out.Write(text)
	w.p.draw()
	return len(text), nil
}

func (p *progress) stop() {
	p.once.Do(func() { close(p.done) })
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.status = nil
}

func (p *progress) clear() {
	if p.status != nil {
		_, _ = io.WriteString(p.status, "\r\033[K")
	}
}

func (p *progress) draw() {
	if p.status == nil {
		return
	}
	state := p.state
	if state == "" {
		state = "queued"
	}
	fmt.Fprintf(p.status, "\r\033[K%s %s", state, time.Since(p.since).Round(time.Second))
}
