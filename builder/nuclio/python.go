package nuclio

import (
	"fmt"
	"strings"

	"kiln/builder/lazyregexp"
)

const (
	defaultHandler = "main:handler"
	defaultRuntime = "python:3.9"
)

var (
	plainWord = lazyregexp.New(`^[A-Za-z0-9_@%+=:,./-]+$`)
	version   = lazyregexp.New(`^v?(\d+)\.(\d+)`)
)

// commands returns those of spec.config, else the function's, and then the command
// that installs the requirements.
func (m *maker) commands(config tree) []any {
	const path = "spec.build.commands"
	all, err := asTexts(config.child("spec").child("build")["commands"])
	if err != nil {
		m.fault("spec.config["+path+"]", "%w", err)
	}
	if empty(m.fields.child("config")[path]) {
		all = append(all, m.spec.Commands...)
	}
	var kept []string
	for _, command := range all {
		if command = strings.TrimSpace(command); command != "" && !strings.HasPrefix(command, "#") {
			kept = append(kept, command)
		}
	}
	if len(m.spec.Requirements) > 0 {
		kept = append(kept, PipInstall(m.spec.Requirements))
	}
	return texts(kept)
}

// PipInstall is the one command that installs the lines of a requirements file. Each
// requirement is one word for the shell. A line that begins with an option is several:
// its flag, and the rest as one word, which may be the path of a file in the base
// image ("-r requirements.txt").
func PipInstall(requirements []string) string {
	words := make([]string, 0, 4+len(requirements))
	words = append(words, "python", "-m", "pip", "install")
	for _, line := range requirements {
		words = append(words, pipWords(line)...)
	}
	return strings.Join(words, " ")
}

func pipWords(line string) []string {
	if !strings.HasPrefix(line, "-") {
		return []string{quote(line)}
	}
	if rest, ok := strings.CutPrefix(line, "-r"); ok && rest != "" {
		return []string{"-r", quote(strings.TrimSpace(rest))}
	}
	flag, rest, more := strings.Cut(line, " ")
	if rest = strings.TrimSpace(rest); !more || rest == "" {
		return []string{quote(flag)}
	}
	return []string{quote(flag), quote(rest)}
}

// quote makes one word of text for a POSIX shell, as Python's shlex.quote does.
func quote(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'"'"'`) + "'"
}

// runtime is the function's own, or the one that its client was made for.
func (m *maker) runtime() string {
	own := m.fields.text("nuclio_runtime")
	runtime := orElse(own, m.clientRuntime())
	if !strings.HasPrefix(runtime, "python:3.") || runtime == "python:3.6" || !before(m.spec.Config.Version, 1, 6) {
		return runtime
	}
	if own != "" {
		m.fault("spec.nuclio_runtime", "Nuclio %s has no runtime %s", m.spec.Config.Version, own)
	}
	return "python:3.6"
}

func (m *maker) clientRuntime() string {
	if strings.HasPrefix(m.spec.ClientPythonVersion, "3.7") || before(m.spec.ClientVersion, 1, 3) {
		return "python:3.7"
	}
	return orElse(m.spec.Config.Runtime, defaultRuntime)
}

// before reports whether a version is older than major.minor. Those of development
// ("0.0.0+unstable", "0.0.0-abc") are newer than every other, and so is no version.
func before(text string, major, minor int) bool {
	parts := version.FindStringSubmatch(text)
	if parts == nil || strings.Contains(text, "unstable") || strings.HasPrefix(text, "0.0.0-") {
		return false
	}
	var has, than int
	if _, err := fmt.Sscanf(parts[1]+" "+parts[2], "%d %d", &has, &than); err != nil {
		return false
	}
	return has < major || has == major && than < minor
}
