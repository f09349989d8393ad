package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"sigs.k8s.io/yaml"
)

// program compiles a static program that says what it sees.
func program(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	text := `package main
import ("fmt"; "os")
func main() {
	certificates, _ := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	fmt.Println(os.Getuid(), os.WriteFile("/tmp/x", nil, 0o600) == nil, len(certificates) > 0)
}`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func image(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// unpack writes a tar stream below dir.
func unpack(t *testing.T, from io.Reader, dir string) {
	t.Helper()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || !filepath.IsLocal(h.Name) {
			t.Fatalf("%v %v", h, err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = errors.Join(os.MkdirAll(path, 0o700), os.Chmod(path, h.FileInfo().Mode()))
		} else {
			data, readErr := io.ReadAll(r)
			err = errors.Join(readErr, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600), os.Chmod(path, h.FileInfo().Mode()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// open reads an archive as other tools do.
func open(t *testing.T, file string) (v1.ImageIndex, v1.Descriptor) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	unpack(t, f, dir)
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("manifest = %+v, %v", manifest, err)
	}
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index, manifest.Manifests[0]
}

func TestArchiveHoldsEveryPlatformAndIsTheSameAtEveryRun(t *testing.T) {
	t.Parallel()
	bin := program(t)
	var archives [][]byte
	for _, file := range []string{filepath.Join(t.TempDir(), "a.tar"), filepath.Join(t.TempDir(), "sub", "b.tar")} {
		digest := image(t, "kaniko", "-binary", "linux/amd64="+bin, "-binary", "linux/arm64="+bin, "-name", "example.com/kaniko:1", "-o", file)
		index, described := open(t, file)
		if described.Digest.String() != digest || described.Annotations["org.opencontainers.image.ref.name"] != "example.com/kaniko:1" {
			t.Errorf("descriptor = %+v, want digest %s", described, digest)
		}
		manifest, err := index.IndexManifest()
		if err != nil || len(manifest.Manifests) != 2 || manifest.Manifests[1].Platform.Architecture != "arm64" {
			t.Errorf("index = %+v, %v", manifest, err)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, raw)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two runs give different archives")
	}
}

func TestPushedImageRunsAsNobodyWithCertificatesAndAFolderForFiles(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: changing the root folder needs root")
	}
	srv := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(srv.Close)
	target := strings.TrimPrefix(srv.URL, "http://") + "/kiln:test"
	bin := program(t)
	digest := image(t, "kiln", "-binary", "linux/"+runtime.GOARCH+"="+bin+","+bin+","+bin, "-push", target, "-insecure")
	ref, err := name.ParseReference(target)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		t.Fatal(err)
	}
	if head, err := remote.Head(ref); err != nil || head.Digest.String() != digest {
		t.Errorf("pushed %v (%v), printed %s", head, err, digest)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	content := mutate.Extract(img)
	defer content.Close()
	unpack(t, content, root)
	for _, program := range []string{"/kiln", "/kilnd", "/kiln-init"} {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "65532 true true\n" {
			t.Errorf("%s sees %q (%v), want its user, a writable /tmp and certificates", program, out, err)
		}
	}
}

func TestDockerfileMakesTheSameConfiguration(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parsed, err := parser.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	last := stages[len(stages)-1]
	got := v1.Config{Labels: map[string]string{}}
	for _, command := range last.Commands {
		switch c := command.(type) {
		case *instructions.EnvCommand:
			for _, pair := range c.Env {
				got.Env = append(got.Env, pair.String())
			}
		case *instructions.LabelCommand:
			for _, pair := range c.Labels {
				got.Labels[pair.Key] = pair.Value
			}
		case *instructions.WorkdirCommand:
			got.WorkingDir = c.Path
		case *instructions.UserCommand:
			got.User = c.User
		case *instructions.EntrypointCommand:
			got.Entrypoint = c.CmdLine
		}
	}
	if diff := cmp.Diff(recipes()["kiln"].config, got); diff != "" || last.BaseName != "scratch" {
		t.Errorf("FROM %s (-recipe +Dockerfile):\n%s", last.BaseName, diff)
	}
}

func TestFunctionFileMakesTheSameImageAsTheDockerfile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../kiln-image.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var function struct {
		Spec struct {
			Build struct {
				Base     string   `json:"base_image"`
				Commands []string `json:"commands"`
				Extra    string   `json:"extra"`
			}
		}
	}
	if err := yaml.Unmarshal(raw, &function); err != nil {
		t.Fatal(err)
	}
	build := function.Spec.Build
	first, last, ok := strings.Cut(string(text), "\nFROM scratch\n")
	if last = strings.Replace(last, "--from=build", "--from=0", 1); !ok || build.Extra != "FROM scratch\n"+last {
		t.Errorf("last stages differ:\n%s\n%s", build.Extra, last)
	}
	if !strings.Contains(first, "\nFROM "+build.Base+" AS build\n") {
		t.Errorf("the Dockerfile does not begin with %s", build.Base)
	}
	for line := range strings.Lines(build.Commands[0]) {
		if line = strings.TrimSpace(line); line != "cd /src" && !strings.Contains(first, line) {
			t.Errorf("the Dockerfile lacks %q", line)
		}
	}
}

func TestCertificatesAreManyAndReadable(t *testing.T) {
	t.Parallel()
	pool := x509.NewCertPool()
	if text := image(t, "certificates"); !pool.AppendCertsFromPEM([]byte(text)) || strings.Count(text, "BEGIN CERTIFICATE") < 80 {
		t.Errorf("%d certificates", strings.Count(text, "BEGIN CERTIFICATE"))
	}
}

func TestMistakesAreNamed(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"usage:":               {"kiln"},
		"image kaniko":         {"other"},
		"OS/ARCH=FILE":         {"kiln", "-binary", "amd64", "-o", "x"},
		"not an executable":    {"kaniko", "-binary", "linux/amd64=" + script, "-o", "x"},
		"linked dynamically":   {"kaniko", "-binary", "linux/amd64=/bin/ls", "-o", "x"},
		"kiln and kilnd and":   {"kiln", "-binary", "linux/amd64=" + script, "-o", "x"},
		"push no such:ref:not": {"kaniko", "-binary", "linux/amd64=" + program(t), "-push", "no such:ref:not"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}
