package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/cmd/cli"
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
	if code != cli.ExitOK {
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
	if err := json.Unmarshal([]byte(asJSON), &view); err != nil || code != cli.ExitOK || view.Nuclio["kind"] != "Function" {
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
		if code != cli.ExitOK || strings.Contains(out, "username: '***'") != pin || strings.Contains(out, "project-token") {
			t.Errorf("pin %t: exit code %d: %s%s", pin, code, out, errs)
		}
	}
}

// planOf runs kiln plan and returns what it shows.
func planOf(t *testing.T, stdin string, args ...string) planView {
	t.Helper()
	out, errs, code := execute(t, stdin, append([]string{"plan", "--registry-url", "registry.example.com/team", "-o", "json"}, args...)...)
	var view planView
	if err := json.Unmarshal([]byte(out), &view); err != nil || code != cli.ExitOK {
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
		"--project=NAME":               {"plan", "--project-image"},
		"--file=FILE":                  {"plan"},
		"belongs to --project-image":   {"plan", "-f", "-", "--requirement", "x"},
		`is "demo", not "other"`:       {"plan", "--project-image", "-f", "-", "--project", "other"},
		"address of the Nuclio dashbo": {"up", "--nuclio-dashboard-url", "nuclio:8070", "--data-dir", t.TempDir(), "--nats-addr", "127.0.0.1:0", "--registry-addr", "127.0.0.1:0", "--http-addr", "off"},
		"secrets-dir":                  {"plan", "-f", "-", "--secrets-dir", "/nowhere"},
	} {
		_, errs, code := execute(t, "metadata: {name: demo}\nkind: job\nspec: {image: a/b}\n", args...)
		if code != cli.ExitUsage || !strings.Contains(errs, text) {
			t.Errorf("kiln %v: exit code %d, want 2 and %q in: %s", args, code, text, errs)
		}
	}
}
