//go:build e2e

package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/cmd/cli"
)

// buildkit are the programs of BuildKit; the test is skipped where they are not.
func buildkit(t *testing.T) (daemon, client string) {
	t.Helper()
	for _, dir := range []string{os.Getenv("KILN_TEST_BUILDKIT"), "../../bin"} {
		daemon, client = filepath.Join(dir, "buildkitd"), filepath.Join(dir, "buildctl")
		if _, err := os.Stat(daemon); err == nil {
			return daemon, client
		}
	}
	t.Skip("SKIPPED: no BuildKit to compare with: make buildkit, or KILN_TEST_BUILDKIT=<folder with buildkitd and buildctl>")
	return "", ""
}

// TestBuildKitMakesTheSameOfTheSameDockerfile builds what `kiln plan` prints with
// BuildKit, and compares the files with those of Kiln's image.
func TestBuildKitMakesTheSameOfTheSameDockerfile(t *testing.T) {
	daemon, client := buildkit(t)
	k := up(t, t.TempDir(), "KILN_PROJECT_SECRET__E2E__API_KEY="+projectSecret)
	pushBase(t, k.Registry+"/base:1", 0)
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "main.py"), []byte("print('both')\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	function, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "both", "project": "e2e"},
		"spec": map[string]any{"build": map[string]any{
			"base_image": k.Registry + "/base:1", "with_mlrun": false, "builder_env": map[string]string{"MODE": "a b"},
			"commands": []string{
				`echo "$MODE" > /mode`,
				"for i in 1 2; do\n  echo \"line $i\"\ndone > /lines\ncat <<'EOF' > /quoted\nit's $HOME \\\nEOF",
				`echo "${#API_KEY}" > /length`,
				"echo " + strings.Repeat("x", 70_000) + " > /long",
				"cat /home/mlrun_code/main.py > /copy",
			},
			"extra": "ENV DONE=yes\nRUN echo $DONE > /done",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ours := k.build(t, "both", function, "--source", folder).files(t)

	file := filepath.Join(t.TempDir(), "function.json")
	if err := os.WriteFile(file, function, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := k.run(t.Context(), "plan", "-f", file, "--source", folder, "--pin", "-o", "json", "--registry-url", k.Registry)
	var plan struct {
		Dockerfile string
		Context    map[string]string
	}
	if err := json.Unmarshal([]byte(out), &plan); err != nil || code != cli.ExitOK {
		t.Fatalf("plan ended with %d: %s%s", code, out, errs)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "source"), os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	plan.Context["Dockerfile"] = plan.Dockerfile
	for name, text := range plan.Context {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	address := startBuildKit(t, daemon, client, k.Registry)
	archive := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.CommandContext(t.Context(), client, "--addr", address, "build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local", "context="+dir, "--local", "dockerfile="+dir, "--opt", "build-arg:MODE=a b", "--secret", "id=API_KEY,env=API_KEY",
		"--output", "type=tar,dest="+archive)
	cmd.Env = append(os.Environ(), "API_KEY="+projectSecret)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("BuildKit: %v\n%s\n%s", err, out, plan.Dockerfile)
	}
	theirs := tarFiles(t, archive)
	for _, name := range []string{"mode", "lines", "quoted", "length", "long", "copy", "done", "home/mlrun_code/main.py"} {
		if ours[name] == "" {
			t.Errorf("%s is not in Kiln's image", name)
		}
		if diff := cmp.Diff(theirs[name], ours[name]); diff != "" {
			t.Errorf("%s (-BuildKit +Kiln):\n%s", name, diff)
		}
	}
}

// startBuildKit runs a daemon that ends with the test.
func startBuildKit(t *testing.T, daemon, client, registry string) (address string) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", registry), 0o600); err != nil {
		t.Fatal(err)
	}
	address = "unix://" + filepath.Join(dir, "s")
	out := &lockedBuffer{}
	cmd := exec.Command(daemon, "--addr", address, "--root", filepath.Join(dir, "root"), "--config", config,
		"--oci-worker-snapshotter=native", "--oci-worker-net=host", "--containerd-worker=false")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("buildkitd printed:\n%s", out)
		}
	})
	await(t, time.Minute, "buildkitd", func() bool {
		return exec.Command(client, "--addr", address, "debug", "workers").Run() == nil
	})
	return address
}

func tarFiles(t *testing.T, archive string) map[string]string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string]string{}
	for tr := tar.NewReader(f); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(header.Name, "./")] = string(data)
	}
}
