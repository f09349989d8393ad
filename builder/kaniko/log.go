package kaniko

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Phase is what the executor was doing.
type Phase int

// Phases in their usual order.
const (
	// PhaseStart ends with the check that the image may be pushed.
	PhaseStart Phase = iota
	// PhaseBase looks up base images.
	PhaseBase
	// PhaseUnpack unpacks a base image into the root.
	PhaseUnpack
	// PhaseStep executes an instruction.
	PhaseStep
	// PhasePush uploads the image.
	PhasePush
)

// maxLine is how much of the end of a line is searched for what the executor wrote: an
// instruction can be as long as a command of a request.
const maxLine = 1 << 20

// maxOutput is how much of a line of a command is passed on.
const maxOutput = 32 << 10

// Log reads what the executor and its commands write, passes readable lines on, and
// remembers what Classify needs. Write and Close are for one goroutine; everything
// else is for after Close. The zero value is not usable.
type Log struct {
	out   io.Writer
	lines lines

	started  bool
	noSpace  bool
	phase    Phase
	steps    int
	step     string
	resolved map[string]bool
	// last is the last line in the form of the error that the executor ends with.
	last string
	// failed is the last such line that says that an instruction failed, and exits
	// are the exit codes that such lines named.
	failed string
	exits  map[int]bool
}

// NewLog returns a Log that writes whole lines to out; errors of out are ignored.
func NewLog(out io.Writer) *Log {
	return &Log{out: out, resolved: make(map[string]bool), exits: make(map[int]bool)}
}

// lines collects a stream into lines.
type lines struct {
	// line is the line so far, or its end when head holds its beginning.
	line, head []byte
}

// write calls flush with every line that p completes.
func (s *lines) write(p []byte, flush func(line, head []byte)) {
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		s.line = append(s.line, part...)
		if len(s.line) > 2*maxLine {
			if s.head == nil {
				s.head = bytes.Clone(s.line[:maxOutput])
			}
			s.line = append(s.line[:0], s.line[len(s.line)-maxLine:]...)
		}
		if ended {
			s.end(flush)
		}
		p = rest
	}
}

func (s *lines) end(flush func(line, head []byte)) {
	line, head := s.line, s.head
	s.line, s.head = s.line[:0], nil
	flush(line, head)
}

// Started reports whether the executor wrote anything.
func (l *Log) Started() bool { return l.started }

// NoSpace reports whether any line said that a device is full.
func (l *Log) NoSpace() bool { return l.noSpace }

// Phase is the last phase that was seen.
func (l *Log) Phase() Phase { return l.phase }

// Step is the last instruction that was begun, in one readable line; "" is none.
func (l *Log) Step() string { return readable(l.step) }

// Write takes what the executor and its commands write. It never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.lines.write(p, l.flush)
	return len(p), nil
}

// Close passes on an unfinished last line.
func (l *Log) Close() {
	if len(l.lines.line) > 0 {
		l.lines.end(l.flush)
	}
}

// flush handles a line: output of a command, a line of the executor, or the one
// behind the other when the output did not end in a newline.
func (l *Log) flush(line, head []byte) {
	output, level, msg, word := split(line)
	if len(output) > 0 || head != nil || (level == "" && word == "") {
		l.print(output, head)
	}
	switch {
	case level != "":
		l.started = true
		l.executor(level, msg)
	case word != "":
		l.started = true
		l.note(word)
		l.emit(Clean(word))
	}
}

// print passes on output of a command.
func (l *Log) print(line, head []byte) {
	cut := head != nil
	if cut {
		line = head
	}
	text := Clean(string(line))
	l.noSpace = l.noSpace || noSpace(text)
	if len(text) > maxOutput {
		text, cut = strings.ToValidUTF8(text[:maxOutput], ""), true
	}
	if cut {
		text += " … (line cut)"
	}
	l.emit(text)
}

// note keeps what may be the executor's last word.
func (l *Log) note(word string) {
	const most = 4 << 10
	word = Clean(strings.ToValidUTF8(word[:min(len(word), most)], ""))
	l.noSpace = l.noSpace || noSpace(word)
	if code, ok := failedInstruction(word); ok {
		l.failed = word
		l.exits[code] = true
		return
	}
	l.last = word
}

func (l *Log) emit(text string) { _, _ = io.WriteString(l.out, text+"\n") }

// executor follows the build by what the executor says, and tells the user what he
// can use of it.
func (l *Log) executor(level, msg string) {
	switch level {
	case "warning":
		if !noise(msg) {
			l.emit("warning: " + Clean(msg))
		}
	case "error", "fatal", "panic":
		l.note("Error: " + msg)
		l.emit("error: " + Clean(msg))
	default:
		l.info(msg)
	}
}

func (l *Log) info(msg string) {
	switch {
	case instruction(msg):
		l.phase, l.step = PhaseStep, msg
		l.steps++
		// What a here-document says is only in the line that tells the arguments.
		if !strings.Contains(msg, "<<") {
			l.emit(fmt.Sprintf("Step %d: %s", l.steps, l.Step()))
		}
	case l.phase == PhaseStep && strings.HasPrefix(msg, "Args: [") && strings.Contains(l.step, "<<"):
		if _, script, ok := strings.Cut(msg, "\n"); ok {
			l.step = "RUN " + script
		}
		l.emit(fmt.Sprintf("Step %d: %s", l.steps, l.Step()))
	default:
		l.milestone(msg)
	}
}

func (l *Log) milestone(msg string) {
	for _, m := range []struct {
		prefix string
		phase  Phase
		say    string
	}{
		{"Retrieving image manifest ", PhaseBase, "Resolving "},
		{"Unpacking rootfs ", PhaseUnpack, "Unpacking the base image"},
		{"Pushing image to ", PhasePush, "Pushing "},
		{"Pushed ", PhasePush, "Pushed "},
	} {
		rest, ok := strings.CutPrefix(msg, m.prefix)
		if !ok {
			continue
		}
		l.phase = m.phase
		if m.phase == PhaseUnpack {
			rest = ""
		}
		if line := m.say + Clean(rest); m.phase != PhaseBase || !l.resolved[line] {
			l.resolved[line] = len(l.resolved) < 100
			l.emit(line)
		}
		return
	}
}
