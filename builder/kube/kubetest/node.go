package kubetest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is the real node's name.
const Node = "kiln"

// Images that the real node has: Kiln's own and the executor's.
const (
	ContextImage  = "localhost/kiln:test"
	ExecutorImage = "localhost/kaniko:test"
)

// RealNode gives the cluster's real node both images, made of what `make build` left in
// bin, and returns the address at which Pods reach this machine. Without a node the test
// is skipped.
func (c *Cluster) RealNode(tb testing.TB) (address string) {
	tb.Helper()
	node, err := c.Admin.CoreV1().Nodes().Get(tb.Context(), Node, metav1.GetOptions{})
	if err != nil {
		tb.Skipf("SKIPPED: the cluster has no real node (%v); `make kube-up KUBE_NODE=1` says what this machine lacks", err)
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			address = a.Address
		}
	}
	bin := func(variable, file string) string {
		path, err := filepath.Abs(cmp.Or(os.Getenv(variable), filepath.Join("..", "..", "bin", file)))
		if err == nil {
			_, err = os.Stat(path) //nolint:gosec // a test's own choice
		}
		if err != nil {
			tb.Skipf("SKIPPED: %v; get it with: make build", err)
		}
		return path
	}
	c.Load(tb, ExecutorImage, map[string]string{
		"kaniko/executor": bin("KILN_TEST_EXECUTOR", "kaniko-executor"), "kaniko/ssl/certs/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt",
	})
	c.Load(tb, ContextImage, map[string]string{
		"usr/bin/kiln": bin("KILN_TEST_KILN", "kiln"), "usr/bin/kilnd": bin("KILN_TEST_KILND", "kilnd"),
	}, "/usr/bin/kiln")
	return address
}

// Load gives the real node an image of files of this machine, by their names in the
// image.
func (c *Cluster) Load(tb testing.TB, tag string, files map[string]string, entrypoint ...string) {
	tb.Helper()
	ref, err := name.ParseReference(tag)
	if err != nil {
		tb.Fatal(err)
	}
	archive := filepath.Join(tb.TempDir(), "image.tar")
	if err := tarball.WriteToFile(archive, ref, image(tb, files, entrypoint)); err != nil {
		tb.Fatal(err)
	}
	socket := filepath.Join(c.Dir, "node", "containerd.sock")
	cmd := exec.CommandContext(tb.Context(), "ctr", "-a", socket, "-n", "k8s.io", "images", "import", archive) //nolint:gosec // of this test
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("import %s: %v\n%s", tag, err, out)
	}
}

func image(tb testing.TB, files map[string]string, entrypoint []string) v1.Image {
	tb.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for target, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // a test's own choice
		if err == nil {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: target, Mode: 0o755, Size: int64(len(data))})
		}
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}, Config: v1.Config{Entrypoint: entrypoint},
	})
	if err != nil {
		tb.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer)); err != nil {
		tb.Fatal(err)
	}
	return img
}
