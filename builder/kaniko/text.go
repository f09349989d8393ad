package kaniko

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"

	"kiln/builder/lazyregexp"
)

// instructionFailed begins the last word after an instruction failed.
const instructionFailed = "error building image: error building stage: failed to "

var (
	// escapes are the control sequences of terminals: CSI, OSC and two-byte ones.
	escapes = lazyregexp.New("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b[@-Z\\\\-_]")
	// instructions are how the executor announces a step: by its text.
	instructions = lazyregexp.New(`^(?:ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR)\s`)
	// mounts are options of RUN that say nothing to whoever wrote the command.
	mounts = lazyregexp.New(`^RUN(?:\s+--(?:mount|network|security)=\S+)+\s+`)
	// failure is the last word after an instruction failed, with the exit code or the
	// signal of its process if it had one.
	failure = lazyregexp.New(`^` + instructionFailed +
		`(?:execute command|get files used from context): (?:.*waiting for process to exit: (?:exit status (\d+)|(signal: .+))$)?`)
	// answer finds what a registry answered: a status, or a code of the OCI
	// distribution specification.
	answer = lazyregexp.New(`(?:GET|HEAD|POST|PUT|PATCH|DELETE) \S+: (?:unexpected status code (\d{3})|([A-Z_]+):)`)
)

func instruction(msg string) bool { return instructions.MatchString(msg) }

// noise are warnings that concern nobody: they speak of how Kiln runs the executor.
func noise(msg string) bool {
	return strings.Contains(msg, "DOCKER_AUTH_CONFIG") || strings.Contains(msg, "issues/280") ||
		strings.HasPrefix(msg, "Kaniko is being run outside of a container") ||
		strings.HasPrefix(msg, "make sure you entered the correct tag name")
}

// readable is an instruction in one line of bounded length.
func readable(instruction string) string {
	const most = 200
	text := mounts.ReplaceAllString(strings.TrimSpace(instruction), "RUN ")
	first, more, _ := strings.Cut(text, "\n")
	first = Clean(first)
	if runes := []rune(first); len(runes) > most {
		first, more = string(runes[:most]), "…"
	}
	if strings.TrimSpace(more) != "" {
		first += " …"
	}
	return first
}

// Clean makes a line harmless to terminals and readers: what a carriage return
// would overwrite is dropped, and so are control sequences, control characters and
// characters that change the direction of text; what is not UTF-8 is replaced.
func Clean(line string) string {
	text := strings.TrimRight(line, "\r\n")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	text = strings.ToValidUTF8(text, "�")
	if strings.ContainsRune(text, '\x1b') {
		text = escapes.ReplaceAllString(text, "")
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return r
		case unicode.IsControl(r), r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x2028, r == 0x2029:
			return -1
		}
		return r
	}, text)
}

// noSpace reports whether text is the C library's or Go's word for a full device.
func noSpace(text string) bool {
	return strings.Contains(strings.ToLower(text), "no space left on device")
}

// split takes a line apart: output of a command, then a line of the executor in its
// JSON form (level and msg) or in the plain form that it ends with (word).
func split(line []byte) (output []byte, level, msg, word string) {
	const start = `{"level":"`
	for from := 0; ; {
		i := bytes.Index(line[from:], []byte(start))
		if i < 0 {
			break
		}
		from += i
		if level, msg, ok := own(line[from:]); ok {
			return line[:from], level, msg, ""
		}
		from += len(start)
	}
	// What a command wrote can stand before it, whatever it looks like.
	for _, start := range []string{instructionFailed + "execute command: ", instructionFailed + "get files used from context: "} {
		if i := bytes.LastIndex(line, []byte(start)); i >= 0 {
			return line[:i], "", "", string(line[i:])
		}
	}
	if bytes.HasPrefix(line, []byte("Error: ")) {
		return nil, "", "", string(line)
	}
	for _, start := range []string{"error building image: ", "error pushing image: ", "error checking push permissions: "} {
		if i := bytes.Index(line, []byte(start)); i >= 0 {
			return line[:i], "", "", string(line[i:])
		}
	}
	return line, "", "", ""
}

// own reports whether the line has the form that the executor logs in.
func own(line []byte) (level, msg string, ok bool) {
	var entry struct {
		Level, Msg string
		Time       time.Time
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&entry); err != nil || entry.Level == "" || entry.Time.IsZero() {
		return "", "", false
	}
	if len(bytes.TrimSpace(line[decoder.InputOffset():])) > 0 {
		return "", "", false
	}
	return entry.Level, entry.Msg, true
}

// failedInstruction reports whether the executor ended since an instruction failed,
// and the exit code that it then has.
func failedInstruction(word string) (code int, ok bool) {
	m := failure.FindStringSubmatch(word)
	switch {
	case m == nil:
		return 0, false
	case m[1] != "":
		code, err := strconv.Atoi(m[1])
		return code, err == nil
	case m[2] != "":
		return signaled, true
	}
	return 1, true
}

// answered returns the HTTP status that the registry answered with last; 0 is none.
func answered(word string) int {
	all := answer.FindAllStringSubmatch(word, -1)
	if len(all) == 0 {
		return 0
	}
	m := all[len(all)-1]
	if m[1] != "" {
		code, _ := strconv.Atoi(m[1])
		return code
	}
	switch m[2] {
	case "UNAUTHORIZED":
		return 401
	case "DENIED":
		return 403
	case "MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND":
		return 404
	case "TOOMANYREQUESTS":
		return 429
	}
	return 0
}
