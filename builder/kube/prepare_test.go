package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"

	"kiln/builder"
)

// mountSecret writes the plan's Secret as kubelet mounts it: every file is a link to
// one in a folder with a link to it.
func mountSecret(t *testing.T, plan builder.Plan) *os.Root {
	t.Helper()
	cfg := testConfig()
	cfg.SourceSettings = []byte("settings")
	secret, err := newSecret(plan, cfg, plainReach(t), &batchv1.Job{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const version = "..2026_11_25_15_00_00.123456789"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, version), 0o700), os.Symlink(version, filepath.Join(dir, "..data"))); err != nil {
		t.Fatal(err)
	}
	for key, value := range secret.Data {
		err := errors.Join(os.WriteFile(filepath.Join(dir, version, key), value, 0o400), os.Symlink(filepath.Join("..data", key), filepath.Join(dir, key)))
		if err != nil {
			t.Fatal(err)
		}
	}
	return openRoot(t, dir)
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// tree returns the files below dir, each with its mode.
func tree(t *testing.T, dir *os.Root) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(dir.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			files[name] = info.Mode().String()
			return nil
		}
		data, err := dir.ReadFile(name)
		files[name] = fmt.Sprintf("%04o %s", info.Mode().Perm(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// fetcher is a Sources that writes what it was asked for.
type fetcher struct {
	settings string
	err      error
	closed   bool
}

func (f *fetcher) open(settings []byte) (Sources, io.Closer, error) {
	f.settings = string(settings)
	return f, f, nil
}

func (f *fetcher) Close() error {
	f.closed = true
	return nil
}

// noSources fails a test that needs none.
func noSources([]byte) (Sources, io.Closer, error) {
	return nil, nil, errors.New("the settings are wrong")
}

func (f *fetcher) Fetch(_ context.Context, url, version string, env map[string]string, dir *os.Root) error {
	if f.err != nil {
		return f.err
	}
	raw, err := json.Marshal(env)
	if err != nil {
		return err
	}
	return errors.Join(dir.WriteFile("asked", []byte(url+" "+version), 0o644), dir.WriteFile("env", raw, 0o644))
}

func TestWorkspaceHoldsRealFiles(t *testing.T) {
	t.Parallel()
	plan := everything()
	plan.Context = append(plan.Context, builder.File{Name: "dir/run.sh", Data: []byte("#!/bin/sh\n"), Mode: 0o755})
	plan.Secrets = append(plan.Secrets, builder.Secret{ID: "GIT_TOKEN", Value: "of the secret"})
	workspace := openRoot(t, t.TempDir())
	var log strings.Builder
	var sources fetcher
	if err := Prepare(t.Context(), mountSecret(t, plan), workspace, sources.open, &log); err != nil {
		t.Fatal(err)
	}
	if sources.settings != "settings" || !sources.closed {
		t.Errorf("sources were opened with %q, closed: %v", sources.settings, sources.closed)
	}
	want := map[string]string{
		"Dockerfile":               "0644 " + plan.Dockerfile,
		"context/requirements.txt": "0644 pandas==2\n",
		"context/dir/run.sh":       "0755 #!/bin/sh\n",
		"context/source/asked":     "0644 " + plan.Source.URL + " " + plan.Source.Version,
		"context/source/env":       `0644 {"GIT_TOKEN":"hush-arg","KEY":"hush-key","LEVEL":"3","PIP_INDEX_URL":"https://u:hush-pip@pypi.example.com/simple"}`,
	}
	if diff := cmp.Diff(want, tree(t, workspace)); diff != "" {
		t.Errorf("workspace (-want +got):\n%s", diff)
	}
	if strings.Contains(log.String(), "hush") || !strings.Contains(log.String(), plan.Source.Version) {
		t.Errorf("log: %s", log.String())
	}
}

func TestPlanWithoutSourceNeedsNone(t *testing.T) {
	t.Parallel()
	workspace := openRoot(t, t.TempDir())
	if err := Prepare(t.Context(), mountSecret(t, testPlan()), workspace, noSources, &strings.Builder{}); err != nil {
		t.Fatal(err)
	}
	if _, err := workspace.Stat("context"); err != nil {
		t.Errorf("the executor finds no context: %v", err)
	}
}

func TestPrepareSaysWhoseFaultItIs(t *testing.T) {
	t.Parallel()
	outside := testPlan()
	outside.Context = []builder.File{{Name: "../../etc/passwd", Data: []byte("x")}}
	gone := builder.Errorf(builder.KindSourceNotFound, "fetching the source", "no branch main")
	for name, tc := range map[string]struct {
		from *os.Root
		open Opener
		kind builder.Kind
		says string
	}{
		"no plan":             {openRoot(t, t.TempDir()), noSources, builder.KindUnavailable, keyPlan},
		"path out of it":      {mountSecret(t, outside), noSources, builder.KindInvalidRequest, "../../etc/passwd"},
		"nobody fetches":      {mountSecret(t, everything()), noSources, builder.KindUnavailable, "settings are wrong"},
		"source is not there": {mountSecret(t, everything()), (&fetcher{err: gone}).open, builder.KindSourceNotFound, "no branch main"},
	} {
		err := Prepare(t.Context(), tc.from, openRoot(t, t.TempDir()), tc.open, &strings.Builder{})
		if err == nil || builder.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %s with %q", name, err, tc.kind, tc.says)
			continue
		}
		// The engine hears the same through the termination message.
		heard := failed(string(Failure(err)), 1)
		if builder.KindOf(heard) != tc.kind || !strings.Contains(heard.Error(), tc.says) {
			t.Errorf("%s: the engine hears %v", name, heard)
		}
	}
}

func TestFailureFitsIntoATerminationMessage(t *testing.T) {
	t.Parallel()
	for _, text := range []string{strings.Repeat("\x00\x1b<>\"\\", 5000), strings.Repeat("ä", 9000), strings.Repeat(`"`, 9000)} {
		raw := Failure(builder.Errorf(builder.KindSourceNotFound, text, "%s", text))
		if len(raw) > 4096 || builder.KindOf(failed(string(raw), 1)) != builder.KindSourceNotFound {
			t.Errorf("%d bytes: %.100s", len(raw), raw)
		}
	}
}

func TestStrangeTerminationMessagesAreNotBelieved(t *testing.T) {
	t.Parallel()
	for _, message := range []string{"", "panic: x", "{}", `{"kind":"lease_lost"}`, `{"kind":"free_lunch","message":"x"}`} {
		if err := failed(message, 2); builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(err.Error(), "exit code 2") {
			t.Errorf("%q: %v", message, err)
		}
	}
}
