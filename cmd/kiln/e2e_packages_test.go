//go:build e2e || kube

package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"kiln/builder/enginetest"
)

// packageIndex serves the demo's packages by TLS at an address of this machine and
// returns where.
func packageIndex(t *testing.T, ca *enginetest.Authority, ip string) (address string) {
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
	return enginetest.NewTLSServer(t, ca, httputil.NewSingleHostReverseProxy(plain), ip).URL
}

// pushPython pushes a base with this machine's own release of Python and pip.
func pushPython(t *testing.T, ref string, options ...remote.Option) {
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
	if err := remote.Write(parsed, img, options...); err != nil {
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
