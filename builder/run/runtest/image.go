package runtest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Entrypoint is the suite's image's own entrypoint and command.
func Entrypoint() []string { return []string{"/bin/probe", "out", "the entrypoint"} }

// Build builds a static program of this module and returns it.
func Build(tb testing.TB, pkg string) []byte {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, pkg) //nolint:gosec // the tests' own packages
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	program, err := os.ReadFile(file) //nolint:gosec // just built
	if err != nil {
		tb.Fatal(err)
	}
	return program
}

// ProbePackage is the package of the probe.
const ProbePackage = "kiln/builder/run/runtest/probe"

// PushImage pushes the suite's image to the repository and returns its reference by
// digest: the probe (see Build) in /bin, which is its PATH, and nothing else. Its user is 1000:1000,
// its folder /home, which is that user's. Change, unless it is nil, changes
// its configuration; options are those of the push.
func PushImage(tb testing.TB, repository string, probe []byte, change func(*v1.Config), options ...remote.Option) string {
	tb.Helper()
	config := v1.Config{
		Env: []string{"PATH=/bin", "FROM_IMAGE=image"}, User: "1000:1000", WorkingDir: "/home",
		Entrypoint: Entrypoint()[:1], Cmd: Entrypoint()[1:],
	}
	if change != nil {
		change(&config)
	}
	return Push(tb, repository, []v1.Layer{Layer(tb,
		Entry{tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil},
		Entry{tar.Header{Typeflag: tar.TypeDir, Name: "home/", Mode: 0o755, Uid: 1000, Gid: 1000}, nil},
		Entry{tar.Header{Typeflag: tar.TypeReg, Name: "bin/probe", Mode: 0o755}, probe},
	)}, config, options...)
}

// Entry is one of an archive; its size is that of the data.
type Entry struct {
	Header tar.Header
	Data   []byte
}

// Layer returns a layer of the entries, in that order.
func Layer(tb testing.TB, entries ...Entry) v1.Layer {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.Header.Size = int64(len(e.Data)); e.Header.Typeflag == 0 {
			e.Header.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(e.Data); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		tb.Fatal(err)
	}
	return layer
}

// Push pushes an image of the layers and returns its reference by digest.
func Push(tb testing.TB, repository string, layers []v1.Layer, config v1.Config, options ...remote.Option) string {
	tb.Helper()
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}, Config: config})
	if err == nil {
		image, err = mutate.AppendLayers(image, layers...)
	}
	if err != nil {
		tb.Fatal(err)
	}
	ref, err := name.ParseReference(repository + ":latest")
	if err != nil {
		tb.Fatal(err)
	}
	if err := remote.Write(ref, image, options...); err != nil {
		tb.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		tb.Fatal(err)
	}
	return repository + "@" + digest.String()
}
