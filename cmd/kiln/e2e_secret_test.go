//go:build e2e

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"kiln/builder/nuclio/nucliotest"
	"kiln/cmd/cli"
)

func TestASecretOfTheProjectIsUsedAndKeptNowhere(t *testing.T) {
	k := up(t, t.TempDir(), "KILN_PROJECT_SECRET__E2E__API_KEY="+projectSecret)
	pushBase(t, k.Registry+"/base:1", 0)
	file := filepath.Join(t.TempDir(), "function.json")
	function := functionJSON(t, "hush", k.Registry+"/base:1", `test "${#API_KEY}" = 21 && echo "the key is $API_KEY" && echo used >/used`)
	if err := os.WriteFile(file, function, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := k.run(t.Context(), "build", "-f", file, "--id", "hush", "-o", "json", "--wait", "2m")
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	var completed struct {
		BuildID string `json:"build_id"`
		Image   string
	}
	if err := json.Unmarshal([]byte(out), &completed); err != nil {
		t.Fatal(err)
	}
	log, _, _ := k.run(t.Context(), "logs", "hush")
	if !strings.Contains(log+errs, "the key is ***") {
		t.Errorf("the log is\n%s%s", log, errs)
	}
	image, err := crane.Pull(completed.Image)
	if err != nil {
		t.Fatal(err)
	}
	files := mutate.Extract(image)
	defer files.Close()
	var tarball bytes.Buffer
	if _, err := tarball.ReadFrom(files); err != nil {
		t.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(tarball.Bytes(), []byte("used\n")) {
		t.Error("the command left nothing in the image")
	}
	for where, text := range map[string][]byte{
		"layers": tarball.Bytes(), "config and history": config, "command line": []byte(out + errs), "log": []byte(log), "output of kiln up": []byte(k.out.String()),
	} {
		if bytes.Contains(text, []byte(projectSecret)) {
			t.Errorf("the %s shows the secret", where)
		}
	}
	// Events, ledger, logs, blobs and build roots are all below the data directory.
	err = filepath.WalkDir(k.dir, func(path string, entry os.DirEntry, err error) error {
		// Files may go while the worker is at work.
		if err == nil && !entry.Type().IsRegular() || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(projectSecret)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

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

func TestAFunctionOfNuclioIsDeployedOnItsDashboard(t *testing.T) {
	d := nucliotest.New(t)
	k := up(t, t.TempDir(), "KILN_NUCLIO_DASHBOARD_URL="+d.URL, "KILN_PROJECT_SECRET__DEMO__GIT_TOKEN="+projectSecret)
	file := filepath.Join(t.TempDir(), "function.yaml")
	if err := os.WriteFile(file, []byte(nuclioYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := k.run(t.Context(), "build", "-f", file, "-o", "json", "--wait", "1m")
	if code != cli.ExitOK || !strings.Contains(out, `"not_needed"`) || !strings.Contains(out, "registry.example.com/processor:latest") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	sent, times := d.Sent("demo-trainer")
	raw, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	if times != 1 || !strings.Contains(string(raw), projectSecret) {
		t.Errorf("deployed %d times: %s", times, raw)
	}
	if strings.Contains(out+errs+k.out.String(), projectSecret) {
		t.Error("the secret is shown")
	}
}

func TestTheSparkImageStartsFromTheConfiguredOne(t *testing.T) {
	registry := freeAddress(t)
	k := upAt(t, t.TempDir(), registry, "KILN_MLRUN_SPARK_APP_IMAGE="+registry+"/spark-app", "KILN_MLRUN_SPARK_APP_IMAGE_TAG=v3")
	pushBase(t, registry+"/spark-app:v3", 0)
	// The pip of this base finds nothing: as far as that the build has to come.
	out, errs, code := k.run(t.Context(), "spark-image", "--kind", "spark", "--wait", "-o", "json")
	if code != cli.ExitFailed || !strings.Contains(out, registry+"/spark-app:v3") || !strings.Contains(out, "pip install --upgrade pip") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	out, errs, code = k.run(t.Context(), "spark-image", "--kind", "remote-spark")
	if code != cli.ExitOK || strings.TrimSpace(out) == "" {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	found := terminals(t, k.js(t), strings.TrimSpace(out), time.Minute)
	if got := found[0].field(t, "error", "code"); got != "base_not_found" {
		t.Errorf("the image of remote Spark is not there, and the request ends with %v", got)
	}
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
