package dockerfile_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"kiln/builder/dockerfile"
)

var heredocLine = regexp.MustCompile(`^(\S+(?: \S+)?) /dev/fd/3 3<<'(KILN_EOF(?:_\d+)?)'$`)

// parse reads text as BuildKit and Kaniko do, and wants exactly one stage.
func parse(t *testing.T, text string) instructions.Stage {
	t.Helper()
	stages := parseStages(t, text)
	if len(stages) != 1 {
		t.Fatalf("got %d stages, want 1\n%s", len(stages), text)
	}
	return stages[0]
}

func parseStages(t *testing.T, text string) []instructions.Stage {
	t.Helper()
	result, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, text)
	}
	if result.EscapeToken != '\\' {
		t.Fatalf("escape token is %q", result.EscapeToken)
	}
	stages, meta, err := instructions.Parse(result.AST, nil)
	if err != nil {
		t.Fatalf("parse instructions: %v\n%s", err, text)
	}
	if len(meta) != 0 {
		t.Fatalf("got %d instructions before FROM\n%s", len(meta), text)
	}
	return stages
}

// checkText proves that text is what spec (without Extra) asks for, and nothing else.
func checkText(t *testing.T, spec dockerfile.Spec, text string, files []dockerfile.File) {
	t.Helper()
	stage := parse(t, text)
	if stage.BaseName != spec.Base || stage.Name != "" || stage.Platform != "" {
		t.Fatalf("FROM is %q as %q for %q, want %q", stage.BaseName, stage.Name, stage.Platform, spec.Base)
	}
	want := len(spec.Args) + len(spec.Commands)
	if len(spec.Requirements) > 0 {
		want++
	}
	if len(stage.Commands) != want {
		t.Fatalf("got %d instructions, want %d\n%s", len(stage.Commands), want, text)
	}
	for i, name := range spec.Args {
		arg, ok := stage.Commands[i].(*instructions.ArgCommand)
		if !ok || len(arg.Args) != 1 || arg.Args[0].Key != name || arg.Args[0].Value != nil {
			t.Fatalf("instruction %d is %v, want ARG %s", i, stage.Commands[i], name)
		}
	}
	data := make(map[string]string, len(files))
	for _, file := range files {
		data[file.Name] = string(file.Data)
	}
	if len(data) != len(files) {
		t.Fatal("two context files have the same name")
	}
	for i, command := range spec.Commands {
		checkCommand(t, spec, i, command, asRun(t, stage.Commands[len(spec.Args)+i]), data)
	}
	if len(spec.Requirements) > 0 {
		run := asRun(t, stage.Commands[want-1])
		checkMounts(t, run, append([]string{"cache:/root/.cache/pip", bind("requirements.txt")}, secrets(spec)...))
		checkLine(t, run, "python -m pip install -r /kiln/requirements.txt")
		checkEqual(t, "requirements.txt", data["requirements.txt"], strings.Join(spec.Requirements, "\n")+"\n")
		delete(data, "requirements.txt")
	}
	if len(data) != 0 {
		t.Fatalf("context files that nothing mounts: %v", data)
	}
}

func checkCommand(t *testing.T, spec dockerfile.Spec, i int, command string, run *instructions.RunCommand, data map[string]string) {
	t.Helper()
	command = dockerfile.Normalize(command)
	script := fmt.Sprintf("command-%d.sh", i+1)
	body, isFile := data[script]
	switch {
	case isFile:
		checkMounts(t, run, append([]string{bind(script)}, secrets(spec)...))
		checkLine(t, run, interpreter(command)+" /kiln/"+script)
		checkEqual(t, script, body, command+"\n")
		delete(data, script)
	case len(run.Files) == 1:
		checkMounts(t, run, secrets(spec))
		m := heredocLine.FindStringSubmatch(strings.Join(run.CmdLine, " "))
		if m == nil || m[1] != interpreter(command) || m[2] != run.Files[0].Name || run.Files[0].Chomp {
			t.Fatalf("heredoc line %q for %q", run.CmdLine, run.Files[0].Name)
		}
		checkEqual(t, "heredoc", run.Files[0].Data, command+"\n")
	default:
		checkMounts(t, run, secrets(spec))
		checkLine(t, run, command)
	}
}

// interpreter says independently of the package how a command is started.
func interpreter(command string) string {
	first, _, several := strings.Cut(command, "\n")
	if rest, ok := strings.CutPrefix(first, "#!"); ok {
		return strings.Join(strings.Fields(rest), " ")
	}
	if several {
		return "/bin/sh -e"
	}
	return "/bin/sh"
}

func asRun(t *testing.T, command instructions.Command) *instructions.RunCommand {
	t.Helper()
	run, ok := command.(*instructions.RunCommand)
	if !ok {
		t.Fatalf("got %T, want RUN", command)
	}
	if !run.PrependShell {
		t.Fatalf("%v is in exec form", run.CmdLine)
	}
	if err := run.Expand(func(word string) (string, error) { return word, nil }); err != nil {
		t.Fatalf("expand %v: %v", run.CmdLine, err)
	}
	return run
}

func checkLine(t *testing.T, run *instructions.RunCommand, want string) {
	t.Helper()
	if len(run.Files) != 0 {
		t.Fatalf("got %d heredocs, want none", len(run.Files))
	}
	checkEqual(t, "command line", strings.Join(run.CmdLine, " "), want)
}

func checkMounts(t *testing.T, run *instructions.RunCommand, want []string) {
	t.Helper()
	if slices.ContainsFunc(run.FlagsUsed, func(flag string) bool { return flag != "mount" }) {
		t.Fatalf("flags are %v, want mounts only", run.FlagsUsed)
	}
	got := []string{}
	for _, m := range instructions.GetMounts(run) {
		switch m.Type {
		case instructions.MountTypeBind:
			got = append(got, string(m.Type)+":"+m.From+m.Source+":"+m.Target)
		case instructions.MountTypeSecret:
			got = append(got, string(m.Type)+":"+m.CacheID+":"+*m.Env+m.Target)
		default:
			got = append(got, string(m.Type)+":"+m.From+m.Source+m.Target)
		}
	}
	if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
		t.Fatalf("mounts (-want +got):\n%s", diff)
	}
}

func checkEqual(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
}

func bind(file string) string { return "bind:" + file + ":/kiln/" + file }

func secrets(spec dockerfile.Spec) []string {
	mounts := make([]string, 0, len(spec.PipSecrets))
	for _, id := range spec.PipSecrets {
		mounts = append(mounts, "secret:"+id+":"+id)
	}
	return mounts
}
