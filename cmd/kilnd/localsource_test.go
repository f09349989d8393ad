package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kiln/builder/enginetest"
	"kiln/cmd/cli"
)

// project makes a folder with a function file and code.
func project(t *testing.T, source string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{
		"function.yaml": strings.TrimSpace(functionYAML) + "\n    load_source_on_run: false\n    source: " + source + "\n",
		"src/job.py":    "print()", "src/.dockerignore": "*.log\n", "src/x.log": "noise",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, filepath.Join(dir, "function.yaml")
}

// replace changes a text in a file.
func replace(t *testing.T, file, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(raw), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

var contextURL = regexp.MustCompile(`^context://sha256-[0-9a-f]{64}\.tar\.gz$`)

func TestLocalSourcesAreNamedByTheirContent(t *testing.T) {
	t.Parallel()
	dir, file := project(t, "./src")
	first := planOf(t, "", "-f", file)
	if s := first.Source; s == nil || !contextURL.MatchString(s.URL) || s.Local != filepath.Join(dir, "src") || !strings.Contains(first.Dockerfile, "COPY") {
		t.Fatalf("plan is %+v", first)
	}
	// Elsewhere, by the flag, and with other noise.
	other, otherFile := project(t, "''")
	if err := os.WriteFile(filepath.Join(other, "src", "y.log"), []byte("more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again := planOf(t, "", "-f", otherFile, "--source", filepath.Join(other, "src")); again.Source == nil || again.Source.URL != first.Source.URL {
		t.Errorf("the same content is %+v, want %s", again.Source, first.Source.URL)
	}
	if err := os.WriteFile(filepath.Join(dir, "src", "job.py"), []byte("print(2)"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed := planOf(t, "", "-f", file); changed.Source.URL == first.Source.URL {
		t.Error("another content has the same name")
	}
	out, _, _ := execute(t, "", "plan", "-f", file, "--registry-url", "registry.example.com")
	if !strings.Contains(out, "packed     "+filepath.Join(dir, "src")) {
		t.Errorf("the plan for people does not say what was packed:\n%s", out)
	}
}

func TestAPinnedPlanKnowsTheLocalSource(t *testing.T) {
	t.Parallel()
	_, file := project(t, "src")
	reg := enginetest.NewRegistry(t)
	base := enginetest.PushBase(t, reg.Host+"/base")
	replace(t, file, "python:3.12-slim", base.Ref)
	view := planOf(t, "", "-f", file, "--pin")
	digest := strings.TrimSuffix(strings.TrimPrefix(view.Source.URL, "context://sha256-"), ".tar.gz")
	if view.BuildID == "" || view.Source.Version != "sha256:"+digest {
		t.Errorf("build id %q of version %s, want sha256:%s", view.BuildID, view.Source.Version, digest)
	}
}

func TestWhatCannotBePackedEndsWithTwo(t *testing.T) {
	t.Parallel()
	dir, file := project(t, "./src")
	gone, goneFile := project(t, "./gone")
	_, plain := project(t, "''")
	onRun, onRunFile := project(t, "''")
	replace(t, onRunFile, "load_source_on_run: false", "load_source_on_run: true")
	if err := os.Symlink("/etc", filepath.Join(dir, "src", "link")); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"absolute":           {"-f", file},
		gone:                 {"-f", goneFile},
		"load_source_on_run": {"-f", onRunFile, "--source", onRun},
		"neither a folder":   {"-f", plain, "--source", plain},
	} {
		_, errs, code := execute(t, "", append([]string{"plan", "--registry-url", "registry.example.com"}, args...)...)
		if code != cli.ExitUsage || !strings.Contains(errs, says) {
			t.Errorf("%v ended with %d: %s, want %q", args, code, errs, says)
		}
	}
}

func TestSourcesThatAreLoadedOnRunArePathsOfTheImage(t *testing.T) {
	t.Parallel()
	_, file := project(t, "./nowhere.zip")
	replace(t, file, "load_source_on_run: false", "load_source_on_run: true")
	if view := planOf(t, "", "-f", file); view.Source != nil {
		t.Errorf("source is %+v", view.Source)
	}
}
