package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/cmd/cli"
)

var update = flag.Bool("update", false, "rewrite golden files")

// execute runs a command line in this process.
func execute(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, cli.Streams{In: strings.NewReader(stdin), Out: &out, Err: &errs})
	return out.String(), errs.String(), code
}

func TestPlanOfEveryHubFunctionIsAsRecorded(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/hub/*.yaml")
	if err != nil || len(files) < 18 {
		t.Fatalf("%d function files (%v)", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			out, errs, code := execute(t, "", "plan", "-f", file, "--registry-url", "registry.example.com/team", "--platform", "linux/amd64", "-o", "json")
			if code != cli.ExitOK {
				t.Fatalf("exit code %d: %s", code, errs)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".plan.json"
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

const functionYAML = `
kind: job
metadata: {name: trainer, project: demo}
spec:
  build:
    base_image: python:3.12-slim
    with_mlrun: false
    commands: [echo hi]
    requirements: [numpy==2.0]
`

func TestPlanForPeopleShowsWhatMattersAndNoSecret(t *testing.T) {
	t.Parallel()
	out, errs, code := execute(t, functionYAML, "plan", "-f", "-", "--registry-url", "registry.example.com", "--env", "GIT_TOKEN=hunter2hunter2", "--env", "LEVEL=3")
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"FROM python:3.12-slim", "RUN echo hi", "numpy==2.0", "registry.example.com/mlrun/func-demo-trainer:latest",
		"LEVEL=3", "GIT_TOKEN=***", "--build-arg=GIT_TOKEN", "--snapshot-mode=redo", "kiln.identity", "--pin",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "hunter2") {
		t.Errorf("output shows the secret:\n%s", out)
	}
}

func TestPlanShowsSourceOrderAndScheduling(t *testing.T) {
	t.Parallel()
	projects := filepath.Join(t.TempDir(), "projects.yaml")
	if err := os.WriteFile(projects, []byte("demo:\n  source: git+https://me:hunter2hunter2@git.example.com/code#main\n  default_function_node_selector: {zone: a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	yaml := strings.Replace(functionYAML, "with_mlrun", "source: .\n    secret: push\n    extra_args: --snapshot-mode redo\n    with_mlrun", 1)
	args := []string{"plan", "-f", "-", "--registry-url", "registry.example.com", "--mlrun-projects-file", projects}
	out, errs, code := execute(t, yaml, args...)
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"source     git+https://git.example.com/code#main", "folder     /home/mlrun_code/", "order      The source comes last", "registry   push",
		"flags      --snapshot-mode=redo", `scheduling {"node_selector":{"zone":"a"}}`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	asJSON, errs, code := execute(t, yaml, append(args, "-o", "json")...)
	var view planView
	if err := json.Unmarshal([]byte(asJSON), &view); err != nil || code != cli.ExitOK || view.Source == nil || view.Scheduling.NodeSelector["zone"] != "a" {
		t.Errorf("plan = %d %s %s (%v)", code, asJSON, errs, err)
	}
	if strings.Contains(out+asJSON, "hunter2") {
		t.Errorf("output shows the password:\n%s%s", out, asJSON)
	}
}

func TestPlanTakesWholeRequestsAndJSON(t *testing.T) {
	t.Parallel()
	request := `{"function": {"kind": "job", "metadata": {"name": "f"}, "spec": {"image": "mlrun/mlrun"}}, "force_build": false}`
	out, errs, code := execute(t, request, "plan", "-f", "-", "-o", "json")
	var view planView
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != cli.ExitOK || view.Needed || view.Image != "mlrun/mlrun" {
		t.Errorf("plan = %d %s %s (%v)", code, out, errs, err)
	}
}

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
		"unknown command":   {"", []string{"workr"}, `did you mean "worker"`},
		"unknown flag":      {"", []string{"worker", "--engin", "kube"}, "--engine"},
		"no file":           {"", []string{"plan"}, "--file"},
		"missing file":      {"", []string{"plan", "-f", "/nowhere.yaml"}, "nowhere.yaml"},
		"not YAML":          {"a: [", []string{"plan", "-f", "-"}, "YAML"},
		"key twice":         {"kind: job\nkind: job\n", []string{"plan", "-f", "-"}, "kind"},
		"several documents": {"kind: job\n---\nkind: job\n", []string{"plan", "-f", "-"}, "several"},
		"schema":            {"kind: job\nmetadata: {}\nspec: {build: {commands: ls}}\n", []string{"plan", "-f", "-"}, "/function/spec/build/commands"},
		"rules":             {strings.Replace(functionYAML, "job", "toaster", 1), []string{"plan", "-f", "-"}, "toaster"},
		"source of MLRun":   {strings.Replace(functionYAML, "with_mlrun", "source: store://s\n    with_mlrun", 1), []string{"plan", "-f", "-", "--registry-url", "r.example.com"}, "spec.build.source"},
		"local source":      {strings.Replace(functionYAML, "with_mlrun", "source: ./a.zip\n    with_mlrun", 1), []string{"plan", "-f", "-", "--registry-url", "r.example.com"}, "spec.build.source"},
		"project defaults":  {functionYAML, []string{"plan", "-f", "-", "--mlrun-projects-file", bad}, "urll"},
		"no registry":       {functionYAML, []string{"plan", "-f", "-"}, "registry"},
		"unknown setting":   {"", []string{"--config", bad, "worker"}, "nats.urll"},
		"size":              {"", []string{"up", "--sandbox-memory", "lots"}, "lots"},
		"open address":      {"", []string{"up", "--nats-addr", "0.0.0.0:4222", "--data-dir", t.TempDir()}, "loopback"},
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
	for _, args := range [][]string{{"provision"}, {"worker"}} {
		_, errs, code := execute(t, "", append(args, "--nats-url", "nats://user:hunter2@127.0.0.1:1")...)
		if code != cli.ExitNoConnection || !strings.Contains(errs, "kiln up") || strings.Contains(errs, "hunter2") {
			t.Errorf("%v: exit code %d: %s", args, code, errs)
		}
	}
}

func TestFlagBeatsEnvironmentBeatsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kiln.yaml")
	settings := "registry:\n  url: from-file.example.com\n  insecure: [a:1, b:2]\nworker_slots: 7\nmlrun:\n  image_by_kind: {job: x/y}\n"
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(args ...string) *commands {
		var c commands
		parser, err := newParser(&c, cli.Streams{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(append([]string{"--config", file, "worker"}, args...)); err != nil {
			t.Fatal(err)
		}
		return &c
	}
	c := parse()
	if got := c.Worker.Registry; got.URL != "from-file.example.com" || !cmp.Equal(got.Insecure, []string{"a:1", "b:2"}) {
		t.Errorf("registry = %+v", got)
	}
	if c.Worker.Worker.Slots != 7 || c.Worker.MLRun.ImageByKind["job"] != "x/y" || c.Worker.Sandbox.Memory != 4<<30 {
		t.Errorf("worker = %+v", c.Worker.buildFlags)
	}
	t.Setenv("KILN_REGISTRY_URL", "from-env.example.com")
	if got := parse().Worker.Registry.URL; got != "from-env.example.com" {
		t.Errorf("registry.url = %s, want the environment's", got)
	}
	if got := parse("--registry-url", "from-flag.example.com").Worker.Registry.URL; got != "from-flag.example.com" {
		t.Errorf("registry.url = %s, want the flag's", got)
	}
}

func TestEveryCommandHasExamplesAndAnExitCodeForHelp(t *testing.T) {
	t.Parallel()
	var c commands
	parser, err := newParser(&c, cli.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Leaves(true) {
		out, errs, code := execute(t, "", command.Name, "--help")
		if code != cli.ExitOK || !strings.Contains(out, "Examples:\n") || errs != "" {
			t.Errorf("kiln %s --help = %d, %q", command.Name, code, errs)
		}
	}
	if out, _, code := execute(t, "", "--version"); code != cli.ExitOK || !strings.Contains(out, "kaniko v") {
		t.Errorf("--version = %d %q", code, out)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]size{"512MiB": 512 << 20, "4GiB": 4 << 30, "1.5 GiB": 3 << 29, "10": 10, "2KB": 2000, "0": 0} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "lots", "4 Gib", "NaN", "1e30GiB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestConfigurationTableInREADMEIsTheProgramsOwn(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "<!-- config:begin -->")
	table, _, closed := strings.Cut(rest, "<!-- config:end -->")
	if !found || !closed {
		t.Fatal("README.md has no configuration table")
	}
	var want bytes.Buffer
	if err := writeConfigTable(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(want.String()), strings.TrimSpace(table)); diff != "" {
		t.Errorf("run `make docs` (-want +got):\n%s", diff)
	}
}

func TestProvisionWritesItsDefinitionsWithoutAServer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	out, errs, code := execute(t, "", "provision", "--write", dir, "--nats-prefix", "acme", "--nats-url", "nats://127.0.0.1:1")
	if code != cli.ExitOK || strings.Count(out, "wrote") != 14 {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	for name, text := range map[string]string{
		"ACME_BUILD.json": `"acme.build.*"`, "ACME_BUILD_LOG.json": "acme.build.log.*", "KV_ACME_KILN_LEDGER.json": "$KV.ACME_KILN_LEDGER.>", "OBJ_ACME_KILN_CONTEXT.json": "$O.ACME_KILN_CONTEXT.C.>",
		"build-workers.json": `"acme.build.requested"`, "roles.conf": `"$JS.API.CONSUMER.MSG.NEXT.ACME_BUILD.build-workers"`,
	} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(raw), text) {
			t.Errorf("%s lacks %s (%v):\n%s", name, text, err, raw)
		}
	}
	if _, errs, code := execute(t, "", "provision", "--write", dir, "--stream-replicas", "2"); code != cli.ExitUsage || !strings.Contains(errs, "replicas") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
