package kubetest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

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
	address = c.NodeAddress(tb)
	c.Load(tb, ExecutorImage, map[string]string{
		"kaniko/executor": Executor(tb), "kaniko/ssl/certs/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt",
	})
	kiln, kilnd, launcher := Kiln(tb)
	// Where deploy/image has them.
	c.Load(tb, ContextImage, map[string]string{"kiln": kiln, "kilnd": kilnd, "kiln-init": launcher}, "/kiln")
	return address
}

// NodeAddress returns the address at which Pods of the real node reach this machine.
// Without a node the test is skipped.
func (c *Cluster) NodeAddress(tb testing.TB) string {
	tb.Helper()
	node, err := c.Admin.CoreV1().Nodes().Get(tb.Context(), Node, metav1.GetOptions{})
	if err != nil {
		tb.Skipf("SKIPPED: the cluster has no real node (%v); `make kube-up KUBE_NODE=1` says what this machine lacks", err)
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	tb.Fatal("the node has no address")
	return ""
}

// Kiln returns the paths of Kiln's own programs, or skips the test.
func Kiln(tb testing.TB) (kiln, kilnd, launcher string) {
	tb.Helper()
	return Program(tb, "KILN_TEST_KILN", "kiln"), Program(tb, "KILN_TEST_KILND", "kilnd"), Program(tb, "KILN_TEST_INIT", "kiln-init")
}

// Executor returns the path of the Kaniko executor, or skips the test.
func Executor(tb testing.TB) string {
	tb.Helper()
	return Program(tb, "KILN_TEST_EXECUTOR", "kaniko-executor")
}

// Program returns the path of a program that the variable names, or that is in bin. The
// test is skipped when it is not there.
func Program(tb testing.TB, variable, file string) string {
	tb.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv(variable), filepath.Join("..", "..", "bin", file)))
	if err == nil {
		_, err = os.Stat(path) //nolint:gosec // a test's own choice
	}
	if err != nil {
		tb.Skipf("SKIPPED: %v; make e2e-kube builds it", err)
	}
	return path
}

// Trust lets the real node check a registry with the certificates in a file, as long as
// the test runs.
func (c *Cluster) Trust(tb testing.TB, host, certificates string) {
	tb.Helper()
	dir := filepath.Join(c.Dir, "node", "certs.d", host)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // containerd's
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	text := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n", "https://"+host, certificates)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// RunPod runs a Pod until its only container ends, for two minutes at most, and returns
// what it printed and its exit code.
func (c *Cluster) RunPod(tb testing.TB, namespace string, spec corev1.PodSpec) (log string, exitCode int32) {
	tb.Helper()
	pods := c.Admin.CoreV1().Pods(namespace)
	spec.RestartPolicy = corev1.RestartPolicyNever
	made, err := pods.Create(tb.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Minute)
	defer cancel()
	var ended *corev1.ContainerStateTerminated
	for ended == nil {
		pod, err := pods.Get(ctx, made.Name, metav1.GetOptions{})
		if err != nil {
			tb.Fatalf("the Pod %s did not end: %v", made.Name, err)
		}
		if all := pod.Status.ContainerStatuses; len(all) == 1 {
			ended = all[0].State.Terminated
			if waiting := all[0].State.Waiting; waiting != nil && strings.HasPrefix(waiting.Reason, "Err") {
				tb.Fatalf("the Pod %s does not start: %s: %s", made.Name, waiting.Reason, waiting.Message)
			}
		}
		if ended == nil {
			wait(ctx)
		}
	}
	raw, err := pods.GetLogs(made.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return string(raw), ended.ExitCode
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
