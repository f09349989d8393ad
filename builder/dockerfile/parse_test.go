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
	"github.com/moby/buildkit/frontend/dockerfile/shell"

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
	rest := stage.Commands
	next := func() instructions.Command {
		t.Helper()
		if len(rest) == 0 {
			t.Fatalf("got %d instructions, want more\n%s", len(stage.Commands), text)
		}
		first := rest[0]
		rest = rest[1:]
		return first
	}
	for _, name := range spec.Args {
		checkArg(t, next(), name, nil)
	}
	for _, arg := range spec.Defaults {
		checkArg(t, next(), arg.Name, &arg.Value)
	}
	if spec.Source != nil && spec.Source.First {
		checkSource(t, *spec.Source, next(), next())
	}
	data := make(map[string]string, len(files))
	for _, file := range files {
		data[file.Name] = string(file.Data)
	}
	if len(data) != len(files) {
		t.Fatal("two context files have the same name")
	}
	for i, command := range spec.Commands {
		checkCommand(t, spec, i, command, asRun(t, next()), data)
	}
	if len(spec.Requirements) > 0 {
		run := asRun(t, next())
		checkMounts(t, run, append([]string{"cache:/root/.cache/pip", bind("requirements.txt")}, secrets(spec)...))
		checkLine(t, run, "python -m pip install -r /kiln/requirements.txt")
		checkEqual(t, "requirements.txt", data["requirements.txt"], strings.Join(spec.Requirements, "\n")+"\n")
		delete(data, "requirements.txt")
	}
	if spec.PipCA != "" {
		checkEqual(t, "pip-ca.crt", data["pip-ca.crt"], spec.PipCA)
		delete(data, "pip-ca.crt")
	}
	if spec.Source != nil && !spec.Source.First {
		checkSource(t, *spec.Source, next(), next())
	}
	if len(rest) != 0 {
		t.Fatalf("got %d instructions more than wanted\n%s", len(rest), text)
	}
	if len(data) != 0 {
		t.Fatalf("context files that nothing mounts: %v", data)
	}
}

// checkArg wants ARG name, with a value that is value after expansion.
func checkArg(t *testing.T, command instructions.Command, name string, value *string) {
	t.Helper()
	arg, ok := command.(*instructions.ArgCommand)
	if !ok || len(arg.Args) != 1 || arg.Args[0].Key != name || (arg.Args[0].Value == nil) != (value == nil) {
		t.Fatalf("got %v, want ARG %s", command, name)
	}
	if value != nil {
		checkEqual(t, "default of "+name, expand(t, *arg.Args[0].Value), *value)
	}
}

// checkSource wants the COPY of the folder and Python's path.
func checkSource(t *testing.T, want dockerfile.Source, first, second instructions.Command) {
	t.Helper()
	dir, ok := first.(*instructions.CopyCommand)
	if !ok || dir.From != "" || dir.Chown != want.Owner || dir.Chmod != "" || len(dir.SourceContents) != 0 || len(dir.SourcePaths) != 1 {
		t.Fatalf("got %v, want COPY of the source", first)
	}
	checkEqual(t, "source", expand(t, dir.SourcePaths[0]), want.Dir+"/")
	checkEqual(t, "target", expand(t, dir.DestPath), strings.TrimRight(want.Target, "/")+"/")
	env, ok := second.(*instructions.EnvCommand)
	if !ok || len(env.Env) != 1 || env.Env[0].Key != "PYTHONPATH" {
		t.Fatalf("got %v, want ENV PYTHONPATH", second)
	}
	checkEqual(t, "PYTHONPATH", expand(t, env.Env[0].Value), want.Target)
}

// expand does with a word what BuildKit and Kaniko do, with a variable set.
func expand(t *testing.T, word string) string {
	t.Helper()
	got, _, err := shell.NewLex('\\').ProcessWord(word, shell.EnvsFromSlice([]string{"HOME=/root", "A=a"}))
	if err != nil {
		t.Fatalf("expand %q: %v", word, err)
	}
	return got
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
	mounts := make([]string, 0, 1+len(spec.Secrets))
	if spec.PipCA != "" {
		mounts = append(mounts, bind("pip-ca.crt"))
	}
	for _, id := range spec.Secrets {
		mounts = append(mounts, "secret:"+id+":"+id)
	}
	return mounts
}
