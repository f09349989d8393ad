//go:build e2e

package main

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestRequirementsOfEveryFormInstall lets the pip of a real base install from an index
// that only the configured certificates vouch for.
func TestRequirementsOfEveryFormInstall(t *testing.T) {
	index, certificate := packageIndex(t)
	k := up(t, t.TempDir(), "KILN_PIP_INDEX_URL="+index+"/simple/", "KILN_PIP_CA="+certificate)
	base := k.Registry + "/python:1"
	pushPython(t, base)
	body, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "forms", "project": "e2e"},
		"spec": map[string]any{"build": map[string]any{
			"base_image": base, "with_mlrun": false,
			"commands": []string{`printf 'kiln-demo-model==1.0\n' > /more.txt`},
			"requirements": []string{
				"# every form of a line",
				"  kiln-demo-features[fast] @ " + index + "/files/kiln_demo_features-1.1-py3-none-any.whl  # with an extra",
				`no-such-package==9; python_version < "3"`,
				"-r /more.txt",
				"",
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	js := k.js(t)
	if _, err := js.Publish(t.Context(), "build.requested", body, jetstreamID("forms")...); err != nil {
		t.Fatal(err)
	}
	all := terminals(t, js, "forms", 3*time.Minute)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %s\n%s", all[0].Data, k.out)
	}
	ref, _ := all[0].field(t, "image_ref").(string)
	img, err := crane.Pull(ref)
	if err != nil {
		t.Fatal(err)
	}
	var installed, ours []string
	for name := range imageFiles(t, img) {
		if strings.Contains(name, "kiln_demo_") && strings.HasSuffix(name, "dist-info/METADATA") {
			installed = append(installed, filepath.Base(filepath.Dir(name)))
		}
		if strings.HasPrefix(name, "kiln") || strings.HasSuffix(name, "pip-ca.crt") || strings.HasSuffix(name, "requirements.txt") {
			ours = append(ours, name)
		}
	}
	if got := strings.Join(installed, " "); !strings.Contains(got, "kiln_demo_features-1.1") || !strings.Contains(got, "kiln_demo_model-1.0") || len(installed) != 2 {
		t.Errorf("installed: %s", got)
	}
	if len(ours) > 0 {
		t.Errorf("files of the build in the image: %v", ours)
	}
}

// packageIndex serves the demo's packages by TLS and returns its address and the file
// with its certificate.
func packageIndex(t *testing.T) (address, certificate string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "kiln/deploy/demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bin, "index")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	plain, err := url.Parse(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	plain.Path = ""
	srv := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(plain))
	t.Cleanup(srv.Close)
	certificate = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(certificate, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return srv.URL, certificate
}

// pushPython pushes a base with this machine's own release of Python and pip.
func pushPython(t *testing.T, ref string) {
	t.Helper()
	script := filepath.Join("..", "..", "deploy", "demo", "base.sh")
	if out, err := exec.CommandContext(t.Context(), script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path, err := exec.CommandContext(t.Context(), script, "--path").Output()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromFile(strings.TrimSpace(string(path)))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img); err != nil {
		t.Fatal(err)
	}
}

// imageFiles returns the contents of every file of the image by its path.
func imageFiles(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	stream := mutate.Extract(img)
	defer stream.Close()
	files := map[string]string{}
	for tr := tar.NewReader(stream); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data := ""
		if header.Typeflag == tar.TypeReg && header.Size < 1<<20 {
			raw, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			data = string(raw)
		}
		files[strings.TrimPrefix(header.Name, "./")] = data
	}
}
