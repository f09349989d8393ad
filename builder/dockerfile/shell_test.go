package dockerfile_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"kiln/builder/dockerfile"
)

// outcome is what a command did.
type outcome struct {
	Output string
	Code   int
}

// runAsKaniko runs a command as Kaniko v1.27.5 does: the shell gets the command
// line, the heredoc and its delimiter as one argument after -c. Context files are mounted by
// putting their path in place of the mount.
func runAsKaniko(t *testing.T, shell, command, stdin string) outcome {
	t.Helper()
	text, files, err := dockerfile.Render(dockerfile.Spec{Base: "scratch", Commands: []string{command}})
	if err != nil {
		t.Fatal(err)
	}
	run := asRun(t, parse(t, text).Commands[0])
	line := strings.Join(run.CmdLine, " ")
	if len(run.Files) == 1 {
		line += "\n" + run.Files[0].Data + run.Files[0].Name
	}
	if len(files) == 1 {
		line = strings.ReplaceAll(line, "/kiln/", t.TempDir()+"/")
		words := strings.Fields(line)
		if err := os.WriteFile(words[len(words)-1], files[0].Data, os.FileMode(files[0].Mode)); err != nil {
			t.Fatal(err)
		}
	}
	return start(t, stdin, shell, "-c", line)
}

func start(t *testing.T, stdin string, argv ...string) outcome {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	cmd.Env = []string{"PATH=/usr/bin:/bin", "NAME=value with  spaces", "HOME=/root"}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return outcome{Output: out.String(), Code: exit.ExitCode()}
	}
	if err != nil {
		t.Fatalf("start %q: %v", argv, err)
	}
	return outcome{Output: out.String()}
}

func TestShellRunsCommandsUnchanged(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		command, stdin string
		want           outcome
	}{
		"plain":                    {command: "echo $NAME; false; echo on", want: outcome{"value with spaces\non\n", 0}},
		"variables":                {command: "X='$NAME'\necho \"$X\" \"$NAME\" ${HOME}", want: outcome{"$NAME value with  spaces /root\n", 0}},
		"substitution":             {command: "A=$(echo 'in $(echo side)')\necho \"$A\" `echo tick` $((1+2))", want: outcome{"in $(echo side) tick 3\n", 0}},
		"quotes and backslashes":   {command: "printf '%s|' \"a\\\"b\" 'c\\d' e\\ f \\\\\necho", want: outcome{"a\"b|c\\d|e f|\\|\n", 0}},
		"continuation":             {command: "echo a \\\n  b \\\n  c", want: outcome{"a b c\n", 0}},
		"unicode":                  {command: "# größe\necho '日本 🚀 é'", want: outcome{"日本 🚀 é\n", 0}},
		"own heredoc":              {command: "cat <<EOF\n$HOME\nEOF\ncat <<'EOF'\n$HOME\nEOF", want: outcome{"/root\n$HOME\n", 0}},
		"own heredoc in one line":  {command: "echo a; echo $((1<<4))", want: outcome{"a\n16\n", 0}},
		"standard input":           {command: "read -r x\necho \"got $x\"\ncat", stdin: "one\ntwo\n", want: outcome{"got one\ntwo\n", 0}},
		"standard input, one line": {command: "[ -t 9 ] || cat", stdin: "in\n", want: outcome{"in\n", 0}},
		"exit code":                {command: "echo a\nexit 7", want: outcome{"a\n", 7}},
		"first failure ends":       {command: "echo a\nsh -c 'exit 5'\necho b", want: outcome{"a\n", 5}},
		"one line goes on":         {command: "[ -d /nowhere ]; echo on", want: outcome{"on\n", 0}},
		"one line exit code":       {command: "[ -d /nowhere ]", want: outcome{"", 1}},
		"our delimiter":            {command: "cat <<KILN_EOF\nx\nKILN_EOF\necho KILN_EOF", want: outcome{"x\nKILN_EOF\n", 0}},
		"line ends of Windows":     {command: "echo a\r\nif true; then\r\necho b\r\nfi\r\n", want: outcome{"a\nb\n", 0}},
		"escaped space at the end": {command: "printf '%s|' a \\ ", want: outcome{"a| |", 0}},
		"interpreter":              {command: "#!/bin/cat\n$HOME `id` \\ '\n", want: outcome{"#!/bin/cat\n$HOME `id` \\ '\n", 0}},
		"interpreter and argument": {command: "#!/bin/cat -n\nx", want: outcome{"     1\t#!/bin/cat -n\n     2\tx\n", 0}},
		"interpreter exit code":    {command: "#!/usr/bin/env sh\nexit 9", want: outcome{"", 9}},
		"long line": {
			command: "printf %s " + strings.Repeat("x", 70_000) + " | wc -c; false; true",
			want:    outcome{"70000\n", 0},
		},
		"long script": {
			command: "N=0\n" + strings.Repeat("N=$((N+1))\n", 9_000) + "echo $N\nexit 3",
			want:    outcome{"9000\n", 3},
		},
		"script near the limit": {
			command: "cat <<'X'\n" + strings.Repeat("$x `y` \\ 'z'\n", 4_500) + "X",
			want:    outcome{strings.Repeat("$x `y` \\ 'z'\n", 4_500), 0},
		},
		"long interpreter script": {
			command: "#!/bin/cat\n" + strings.Repeat("$x `y` \\ 'z'\n", 6_000),
			want:    outcome{"#!/bin/cat\n" + strings.Repeat("$x `y` \\ 'z'\n", 6_000), 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, shell := range shells() {
				got := runAsKaniko(t, shell, tc.command, tc.stdin)
				if got != tc.want {
					t.Errorf("%s: got %.200q code %d, want %.200q code %d", shell, got.Output, got.Code, tc.want.Output, tc.want.Code)
				}
			}
		})
	}
}

// shells are those that a base image may have set by SHELL.
func shells() []string {
	shells := []string{"/bin/sh"}
	if _, err := os.Stat("/bin/bash"); err == nil {
		shells = append(shells, "/bin/bash")
	}
	return shells
}

// TestPythonReadsItsScript covers an interpreter that looks at its file before it
// reads it.
func TestPythonReadsItsScript(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	command := "#!" + python + "\nimport sys\nprint(sys.stdin.read(), '\\u00fc', \"$HOME\")\nsys.exit(4)"
	if got, want := runAsKaniko(t, "/bin/sh", command, "in"), (outcome{"in ü $HOME\n", 4}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
