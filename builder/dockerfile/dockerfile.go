// Package dockerfile renders Dockerfile text from lists of plain strings.
//
// Every string is data: it can make a build fail, it can never add an
// instruction, a flag, a mount or a stage. Spec.Extra is the exception, since it
// is Dockerfile text by definition; it comes last and cannot change what stands
// before it. The text builds with Kaniko and with BuildKit alike.
//
// A command is rendered in the first form that carries it unchanged:
//
//   - "RUN <command>" for one plain line;
//   - a quoted heredoc on file descriptor 3, read by the interpreter as
//     /dev/fd/3, for several lines and for lines that a Dockerfile parser would
//     take apart. Kaniko does not execute a quoted heredoc that stands alone
//     ("RUN <<'EOF'"), and the shell expands an unquoted one;
//   - a file of the build context, for what is too long for a Dockerfile line
//     or for an argument of a process.
//
// The interpreter is /bin/sh, with -e when the command has several lines, so that
// the first failing line ends it. A first line "#!/path [argument]" names another
// interpreter, which is started as it is. The standard input is free in all forms.
package dockerfile

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Names of context files.
const (
	// RequirementsFile holds the requirements.
	RequirementsFile = "requirements.txt"
	// PipCAFile holds the certificates that pip trusts.
	PipCAFile = "pip-ca.crt"
)

// mountDir is where context files appear while a RUN uses them. It stays out of
// the image.
const mountDir = "/kiln/"

// PipCAPath is where every RUN sees PipCAFile.
const PipCAPath = mountDir + PipCAFile

// Spec is what a Dockerfile is made of.
type Spec struct {
	// Base is the image to start from: a reference, better with a digest, or
	// "scratch".
	Base string
	// Args are names of build arguments. Values are not part of a Dockerfile.
	Args []string
	// Commands run in order, one RUN each; see Normalize and the package comment.
	Commands []string
	// Requirements are the lines of a pip requirements file. Empty: no pip RUN.
	Requirements []string
	// Extra is Dockerfile text. It is appended as it is, with a newline at its end.
	Extra string
	// Secrets are ids of build secrets that every RUN sees as environment variables of
	// the same name ("PIP_INDEX_URL", "GIT_TOKEN").
	Secrets []string
	// PipCA are certificates in PEM form that every RUN sees as PipCAPath; a secret
	// PIP_CERT tells pip so. Empty: none.
	PipCA string
	// Defaults are build arguments with values that are no secret, for every build.
	Defaults []Default
	// Source is the code; nil: none.
	Source *Source
}

// Default is a build argument with its value.
type Default struct{ Name, Value string }

// Source says where a folder of the context goes, which is then on Python's path.
type Source struct {
	// Dir is the folder of the context, Target the one in the image.
	Dir, Target string
	// Owner is "uid:gid". Empty: root.
	Owner string
	// First puts it before the commands.
	First bool
}

// File is a file of the build context that the text refers to. Name is a plain
// file name in the root of the context.
type File struct {
	Name string
	Data []byte
	Mode uint32
}

// Render returns the Dockerfile and the context files that it mounts: FROM, ARG
// lines, one RUN per command, one RUN for the requirements, Extra; the source before
// the first RUN or after the last. The error joins every fault of s, each with the
// field and index it is about.
func Render(s Spec) (string, []File, error) {
	if err := s.check(); err != nil {
		return "", nil, err
	}
	var (
		text  strings.Builder
		files []File
	)
	mounts := secretMounts(s.Secrets)
	if s.PipCA != "" {
		mounts = bindMount(PipCAFile) + mounts
		files = append(files, textFile(PipCAFile, s.PipCA))
	}
	fmt.Fprintf(&text, "FROM %s\n", s.Base)
	for _, name := range s.Args {
		fmt.Fprintf(&text, "ARG %s\n", name)
	}
	for _, arg := range s.Defaults {
		fmt.Fprintf(&text, "ARG %s=%s\n", arg.Name, quote(arg.Value))
	}
	if s.Source != nil && s.Source.First {
		text.WriteString(s.Source.render())
	}
	for i, command := range s.Commands {
		run, file := renderCommand(i+1, Normalize(command), mounts)
		text.WriteString(run)
		if file != nil {
			files = append(files, *file)
		}
	}
	if len(s.Requirements) > 0 {
		text.WriteString("RUN --mount=type=cache,target=/root/.cache/pip " + bindMount(RequirementsFile) + mounts +
			"python -m pip install -r " + mountDir + RequirementsFile + "\n")
		files = append(files, textFile(RequirementsFile, strings.Join(s.Requirements, "\n")+"\n"))
	}
	if s.Source != nil && !s.Source.First {
		text.WriteString(s.Source.render())
	}
	if s.Extra != "" {
		text.WriteString(s.Extra)
		if !strings.HasSuffix(s.Extra, "\n") {
			text.WriteByte('\n')
		}
	}
	return text.String(), files, nil
}

func (s Spec) check() error {
	var faults []error
	note := func(field string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", field, err))
		}
	}
	note("base", CheckBase(s.Base))
	checkNames(note, "args", s.Args)
	checkNames(note, "secrets", s.Secrets)
	checkDefaults(note, s.Defaults)
	if s.Source != nil {
		note("source target", CheckTarget(s.Source.Target))
		note("source owner", CheckOwner(s.Source.Owner))
	}
	for i, command := range s.Commands {
		note(fmt.Sprintf("commands[%d]", i), CheckCommand(command))
	}
	for i, line := range s.Requirements {
		note(fmt.Sprintf("requirements[%d]", i), CheckRequirement(line))
	}
	note("extra", CheckExtra(s.Extra))
	return errors.Join(faults...)
}

func checkNames(note func(string, error), field string, names []string) {
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		path := fmt.Sprintf("%s[%d]", field, i)
		note(path, CheckName(name))
		if seen[name] {
			note(path, fmt.Errorf("%q is named twice", name))
		}
		seen[name] = true
	}
}

func checkDefaults(note func(string, error), defaults []Default) {
	for _, arg := range defaults {
		note("default build argument "+arg.Name, errors.Join(CheckName(arg.Name), checkText(arg.Value)))
		if strings.ContainsFunc(arg.Value, unicode.IsControl) {
			note("default build argument "+arg.Name, errors.New("holds a control character"))
		}
	}
}

// quote makes one word of a text without control characters, as a Dockerfile parser
// reads it: nothing in it is expanded.
func quote(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(text) + `"`
}

func (s Source) render() string {
	owner := ""
	if s.Owner != "" {
		owner = "--chown=" + s.Owner + " "
	}
	return fmt.Sprintf("COPY %s[\"%s/\", \"%s/\"]\nENV PYTHONPATH=\"%s\"\n", owner, s.Dir, strings.TrimRight(s.Target, "/"), s.Target)
}

// secretMounts returns RUN flags, each followed by a space.
func secretMounts(ids []string) string {
	var flags strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&flags, "--mount=type=secret,id=%[1]s,env=%[1]s ", id)
	}
	return flags.String()
}

// bindMount returns the RUN flag for a context file, followed by a space.
func bindMount(name string) string {
	return "--mount=type=bind,source=" + name + ",target=" + mountDir + name + " "
}

func textFile(name, data string) File {
	return File{Name: name, Data: []byte(data), Mode: 0o644}
}
