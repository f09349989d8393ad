package worker

import (
	"bytes"
	"slices"
	"strings"
)

// Bounds of what a failure event carries of the log.
const (
	tailLines     = 20
	tailLineBytes = 1 << 10
)

// Tail keeps the last lines written to it, as many as a failure event carries: 20 of at
// most 1 KiB. Not safe for concurrent use.
type Tail struct {
	lines   []string
	partial []byte
}

// Write takes text in any chunks and never fails.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := tailLineBytes + 1 - len(t.partial); room > 0 {
			t.partial = append(t.partial, line[:min(room, len(line))]...)
		}
		if !ended {
			return n, nil
		}
		t.push()
		p = rest
	}
}

func (t *Tail) push() {
	line := Clip(strings.ToValidUTF8(strings.TrimRight(string(t.partial), "\r"), "\uFFFD"), tailLineBytes)
	t.partial = t.partial[:0]
	if t.lines = append(t.lines, line); len(t.lines) > tailLines {
		t.lines = slices.Delete(t.lines, 0, len(t.lines)-tailLines)
	}
}

// Lines returns the last lines, oldest first, an unfinished one included.
func (t *Tail) Lines() []string {
	if len(t.partial) > 0 {
		t.push()
	}
	return slices.Clone(t.lines)
}
