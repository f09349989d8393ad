package dockerfile

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"kiln/builder/lazyregexp"
)

// maxInline is the longest command, in bytes, that is written into the Dockerfile.
// BuildKit and Kaniko read lines of up to 65 535 bytes, and Linux takes arguments
// of up to 128 KiB; the rest is room for flags.
const maxInline = 60_000

var (
	lineEnd    = lazyregexp.New(`\r+(\n|$)`)
	blankStart = lazyregexp.New(`^([ \t]*\n)+`)
	// shebang is stricter than the kernel: nothing in it may mean anything to the
	// shell that starts the interpreter.
	shebang = lazyregexp.New(`^#![ \t]*(/[A-Za-z0-9._/+-]+)(?:[ \t]+([A-Za-z0-9._/+=:,@%-]+))?[ \t]*(?:\n|$)`)
)

// Normalize returns a command as it is rendered: line ends are LF, blank lines
// around it are gone, and so is white space before a single line and at the end,
// where it means nothing to a shell (after a backslash it does, and stays).
func Normalize(command string) string {
	command = lineEnd.ReplaceAllString(command, "$1")
	command = blankStart.ReplaceAllString(command, "")
	if cut := strings.TrimRight(command, " \t\n"); strings.HasSuffix(cut, `\`) {
		command = strings.TrimRight(command, "\n")
	} else {
		command = cut
	}
	if !strings.Contains(command, "\n") {
		command = strings.TrimLeft(command, " \t")
	}
	return command
}

// renderCommand returns the instruction for a normalized command, the number-th
// of its list, and the context file it needs, if any.
func renderCommand(number int, command, secrets string) (string, *File) {
	switch {
	case len(command) > maxInline:
		file := textFile("command-"+strconv.Itoa(number)+".sh", command+"\n")
		return "RUN " + bindMount(file.Name) + secrets + interpreter(command) + " " + mountDir + file.Name + "\n", &file
	case isPlain(command):
		return "RUN " + secrets + command + "\n", nil
	default:
		end := delimiter(command)
		return fmt.Sprintf("RUN %s%s /dev/fd/3 3<<'%s'\n%s\n%s\n", secrets, interpreter(command), end, command, end), nil
	}
}

// isPlain reports whether a Dockerfile parser hands the command over unchanged as
// the shell form of a RUN. It may say no without need, never yes.
func isPlain(command string) bool {
	return !strings.HasPrefix(command, "#!") &&
		!strings.ContainsAny(command[:1], "-[<") &&
		!strings.Contains(command, "<<") &&
		!strings.HasSuffix(strings.TrimRight(command, " \t"), `\`) &&
		!strings.ContainsFunc(command, unicode.IsControl) &&
		strings.TrimSpace(command) == command
}

// interpreter returns the words that start the interpreter of a checked command.
// A single line runs without -e, as it would after "RUN ".
func interpreter(command string) string {
	switch m := shebang.FindStringSubmatch(command); {
	case m != nil && m[2] != "":
		return m[1] + " " + m[2]
	case m != nil:
		return m[1]
	case strings.Contains(command, "\n"):
		return "/bin/sh -e"
	default:
		return "/bin/sh"
	}
}

// delimiter returns a word that no line of the command is equal to.
func delimiter(command string) string {
	const word = "KILN_EOF"
	lines := make(map[string]bool)
	for line := range strings.SplitSeq(command, "\n") {
		lines[line] = true
	}
	end := word
	for i := 2; lines[end]; i++ {
		end = word + "_" + strconv.Itoa(i)
	}
	return end
}
