package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"kiln/builder/function"
	"kiln/cmd/cli"
	"kiln/worker"
)

// execute runs a command line of the client in this process.
func execute(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, cli.Streams{In: strings.NewReader(stdin), Out: &out, Err: &errs})
	return out.String(), errs.String(), code
}

const functionYAML = `
kind: job
metadata: {name: trainer, project: demo}
spec:
  build:
    base_image: python:3.12-slim
    with_mlrun: false
    commands: [echo hi]
`

func TestMistakesExitWithTwoAndSayWhat(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "kiln.yaml")
	if err := os.WriteFile(bad, []byte("nats: {urll: x}\nregistry: {url: y}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		text  string
	}{
		"unknown command":        {"", []string{"buld"}, `did you mean "build"`},
		"unknown command of two": {"", []string{"workr"}, `did you mean "worker"`},
		"unknown flag":           {"", []string{"ls", "--sinec", "1h"}, "--since"},
		"unknown flag before":    {"", []string{"--log-lvel", "debug", "up"}, "--log-level"},
		"unknown setting":        {"", []string{"--config", bad, "ls"}, "nats.urll"},
		"no file":                {"", []string{"build"}, "--file=FILE"},
		"missing file":           {"", []string{"build", "-f", "/nowhere.yaml"}, "nowhere.yaml"},
		"schema":                 {"kind: job\nmetadata: {}\nspec: {build: {commands: ls}}\n", []string{"build", "-f", "-"}, "/function/spec/build/commands"},
		"follow and detach":      {functionYAML, []string{"build", "-f", "-", "--detach", "--follow"}, "can't be used together"},
		"run without a file":     {"", []string{"run"}, "--file=FILE"},
		"parameter":              {functionYAML, []string{"run", "-f", "-", "--param", "x"}, "NAME=VALUE"},
		"no project":             {"", []string{"build", "--project-image"}, "--project=NAME"},
		"no kind":                {"", []string{"spark-image"}, "--kind"},
		"other kind":             {"", []string{"spark-image", "--kind", "job"}, "must be one of"},
		"no such image":          {"", []string{"spark-image", "--kind", "remote-spark", "--gpu"}, "remote-spark for GPUs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, errs, code := execute(t, tc.stdin, tc.args...)
			if code != cli.ExitUsage || !strings.Contains(errs, tc.text) {
				t.Errorf("exit code %d, want 2 and %q in: %s%s", code, tc.text, out, errs)
			}
		})
	}
}

func TestNoServerExitsWithThree(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"ls"}, {"status", "x"}, {"logs", "x"}, {"runs"}} {
		_, errs, code := execute(t, "", append(args, "--nats-url", "nats://user:hunter2@127.0.0.1:1")...)
		if code != cli.ExitNoConnection || !strings.Contains(errs, "kiln up") || strings.Contains(errs, "hunter2") {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
}

// TestSettingsOfWorkersDoNotDisturb shares one file among clients and workers.
func TestSettingsOfWorkersDoNotDisturb(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "kiln.yaml")
	settings := "nats: {url: 'nats://127.0.0.1:1'}\nlog_level: warn\nregistry: {url: r.example.com}\nmlrun: {server_version: 1.7.0}\nworker_slots: 7\n"
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, code := execute(t, "", "--config", file, "ls")
	if code != cli.ExitNoConnection || !strings.Contains(errs, "127.0.0.1:1;") {
		t.Errorf("exit code %d: %s, want no connection to the server of the file", code, errs)
	}
}

func TestHelpListsTheCommandsOfBothProgramsAndEveryOwnOneHasExamples(t *testing.T) {
	t.Parallel()
	var c commands
	parser, err := cli.Parser(&c, cli.Streams{}, kong.Configuration(cli.OwnSettings))
	if err != nil {
		t.Fatal(err)
	}
	help, _, code := execute(t, "", "--help")
	if again, _, _ := execute(t, ""); code != cli.ExitOK || again != help {
		t.Errorf("kiln --help = %d, and kiln alone prints %s", code, again)
	}
	for _, command := range parser.Model.Leaves(true) {
		if command.Help == "" || !strings.Contains(help, "\n  "+command.Name) || !strings.Contains(help, command.Help) {
			t.Errorf("kiln --help does not list %s:\n%s", command.Name, help)
		}
		if command.Passthrough {
			continue
		}
		out, errs, code := execute(t, "", command.Name, "--help")
		if code != cli.ExitOK || !strings.Contains(out, "Examples:\n") || errs != "" {
			t.Errorf("kiln %s --help = %d, %q", command.Name, code, errs)
		}
	}
	if out, _, code := execute(t, "", "--version"); code != cli.ExitOK || !strings.Contains(out, "kaniko v") {
		t.Errorf("--version = %d %q", code, out)
	}
}

func TestSparkImageAsksForTheDefaultImages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		cmd    sparkImageCmd
		target string
		mlrun  bool
	}{
		{sparkImageCmd{Kind: "spark", Project: "default"}, ".spark-job-default-image", true},
		{sparkImageCmd{Kind: "spark", Project: "default", GPU: true}, ".spark-job-default-image-cuda", true},
		{sparkImageCmd{Kind: "remote-spark", Project: "default", MLRunVersion: "mlrun==1.7.0", NoCache: true}, ".remote-spark-default-image", false},
	} {
		request, err := tc.cmd.request()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(request.Function), `"`+tc.target+`"`) || (request.WithMLRun != nil) != tc.mlrun ||
			request.MLRunVersionSpecifier != tc.cmd.MLRunVersion || request.Options.NoCache != tc.cmd.NoCache || request.ForceBuild {
			t.Errorf("%+v: request = %+v %s", tc.cmd, request, request.Function)
		}
		rules := function.Config{Registry: "registry.example.com", Spark: function.Spark{Image: "gcr.io/iguazio/spark-app", Tag: "v3"}}
		resolved, err := function.Resolve(rules, worker.Input("spark", &request))
		if err != nil || !resolved.Decision.Build || resolved.UserImage != tc.target {
			t.Errorf("a worker makes %q of it (%v): %+v", resolved.UserImage, err, resolved.Decision)
		}
	}
	_, errs, code := execute(t, "", "spark-image", "--kind", "spark", "--nats-url", "nats://127.0.0.1:1")
	if code != cli.ExitNoConnection {
		t.Errorf("without a server: exit code %d: %s", code, errs)
	}
}
