package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const nuclioYAML = `
kind: nuclio
metadata: {name: trainer, project: demo}
spec:
  image: mlrun/mlrun:1.7.0
  env: [{name: DB_PASSWORD, value: hunter2hunter2}]
  build:
    commands: [ls]
    requirements: [pandas]
    source: git://git.example.com/org/repo.git#main
`

func TestPlanShowsWhatNuclioGetsAndNoSecret(t *testing.T) {
	t.Parallel()
	args := []string{"plan", "-f", "-", "--env", "GIT_TOKEN=tok"}
	out, errs, code := execute(t, nuclioYAML, args...)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{
		"no build is needed", "adds 1 command, 1 requirement and its source", "configuration for Nuclio",
		"baseImage: mlrun/mlrun:1.7.0", "python -m pip install", "codeEntryType: git", "name: demo-trainer", "username: '***'",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	asJSON, _, code := execute(t, nuclioYAML, append(args, "-o", "json")...)
	var view planView
	if err := json.Unmarshal([]byte(asJSON), &view); err != nil || code != exitOK || view.Nuclio["kind"] != "Function" {
		t.Errorf("plan = %d %s (%v)", code, asJSON, err)
	}
	for _, shown := range []string{out, asJSON} {
		if strings.Contains(shown, "hunter2") || strings.Contains(shown, "username: tok") || strings.Contains(shown, `"tok"`) {
			t.Errorf("output shows a secret:\n%s", shown)
		}
	}
}

func TestPlanOfNuclioTakesTheProjectsSecretsWithPin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "demo"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "demo", "GIT_TOKEN"), []byte("project-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pin := range []bool{false, true} {
		args := []string{"plan", "-f", "-", "--secrets-dir", dir}
		if pin {
			args = append(args, "--pin")
		}
		out, errs, code := execute(t, nuclioYAML, args...)
		if code != exitOK || strings.Contains(out, "username: '***'") != pin || strings.Contains(out, "project-token") {
			t.Errorf("pin %t: exit code %d: %s%s", pin, code, out, errs)
		}
	}
}

// planOf runs kiln plan and returns what it shows.
func planOf(t *testing.T, stdin string, args ...string) planView {
	t.Helper()
	out, errs, code := execute(t, stdin, append([]string{"plan", "--registry-url", "registry.example.com/team", "-o", "json"}, args...)...)
	var view planView
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != exitOK {
		t.Fatalf("%v: exit code %d: %s (%v)", args, code, errs, err)
	}
	return view
}

func TestProjectImageOfFlags(t *testing.T) {
	t.Parallel()
	view := planOf(t, "", "--project-image", "--project", "demo", "--base-image", "python:3.12", "--no-with-mlrun",
		"--requirement", "pandas>=1,<2", "--requirement", "numpy", "--command", "echo a, b", "--target-dir", "/opt/code")
	got := []string{view.Image, view.Target, view.Base.Ref, view.Function.Name, view.Context["requirements.txt"]}
	want := []string{
		".mlrun-project-image-demo", "registry.example.com/team/mlrun-project-image-demo:latest", "python:3.12",
		"mlrun--project--image--builder", "pandas>=1,<2\nnumpy\n",
	}
	if diff := cmp.Diff(want, got); diff != "" || !view.Needed || !strings.Contains(view.Dockerfile, "RUN echo a, b\n") {
		t.Errorf("(-want +got):\n%s\n%s", diff, view.Dockerfile)
	}
}

func TestProjectImageOfAProjectFile(t *testing.T) {
	t.Parallel()
	project := "kind: project\nmetadata: {name: demo}\nspec:\n  source: git://h.example/r#b\n  default_image: .own:1\n  build: {requirements: [a]}\n"
	view := planOf(t, project, "--project-image", "-f", "-", "--requirement", "b", "--platform", "linux/arm64", "--force")
	if view.Image != ".own:1" || view.Context["requirements.txt"] != "a\nb\n" || view.Base.Ref != "mlrun/mlrun" || view.Platform != "linux/arm64" || !strings.Contains(view.Reason, "its source") {
		t.Errorf("plan = %+v", view)
	}
}

func TestImageFlagsThatDoNotFitExitWithTwo(t *testing.T) {
	t.Parallel()
	for text, args := range map[string][]string{
		"--project=NAME":               {"build", "--project-image"},
		"belongs to --project-image":   {"plan", "-f", "-", "--requirement", "x"},
		"--file=FILE":                  {"build"},
		`is "demo", not "other"`:       {"plan", "--project-image", "-f", "-", "--project", "other"},
		"--kind":                       {"spark-image"},
		"must be one of":               {"spark-image", "--kind", "job"},
		"remote-spark for GPUs":        {"spark-image", "--kind", "remote-spark", "--gpu"},
		"address of the Nuclio dashbo": {"up", "--nuclio-dashboard-url", "nuclio:8070", "--data-dir", t.TempDir(), "--nats-addr", "127.0.0.1:0", "--registry-addr", "127.0.0.1:0", "--http-addr", "off"},
		"secrets-dir":                  {"plan", "-f", "-", "--secrets-dir", "/nowhere"},
	} {
		_, errs, code := execute(t, "metadata: {name: demo}\nkind: job\nspec: {image: a/b}\n", args...)
		if code != exitUsage || !strings.Contains(errs, text) {
			t.Errorf("kiln %v: exit code %d, want 2 and %q in: %s", args, code, text, errs)
		}
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
		document, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		view := planOf(t, string(document), "-f", "-", "--mlrun-spark-app-image", "gcr.io/iguazio/spark-app", "--mlrun-spark-app-image-tag", "v3")
		if !view.Needed || view.Image != tc.target {
			t.Errorf("plan = %+v", view)
		}
	}
	_, errs, code := execute(t, "", "spark-image", "--kind", "spark", "--nats-url", "nats://127.0.0.1:1")
	if code != exitNoConnection {
		t.Errorf("without a server: exit code %d: %s", code, errs)
	}
}
