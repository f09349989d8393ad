package enginetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/builder"
)

// Registry is an image registry in this process, on a port of its own.
type Registry struct {
	// Host is its host:port.
	Host string
	// faults answers instead of the registry when it returns true.
	faults atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

// NewRegistry starts a registry that ends with the test.
func NewRegistry(tb testing.TB) *Registry {
	tb.Helper()
	return NewRegistryAt(tb, "127.0.0.1")
}

// NewRegistryAt is NewRegistry at another address of this machine.
func NewRegistryAt(tb testing.TB, ip string) *Registry {
	tb.Helper()
	r := &Registry{}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if fault := r.faults.Load(); fault != nil && (*fault)(w, req) {
			return
		}
		store.ServeHTTP(w, req)
	}))
	listenAt(tb, srv, ip)
	srv.Start()
	tb.Cleanup(srv.Close)
	r.Host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// listenAt moves a server that has not started to another address.
func listenAt(tb testing.TB, srv *httptest.Server, ip string) {
	tb.Helper()
	_ = srv.Listener.Close()
	var err error
	if srv.Listener, err = new(net.ListenConfig).Listen(tb.Context(), "tcp", net.JoinHostPort(ip, "0")); err != nil {
		tb.Fatal(err)
	}
}

// Fault makes answer stand before the registry: it answers itself and returns true,
// or returns false. nil takes it away.
func (r *Registry) Fault(answer func(http.ResponseWriter, *http.Request) bool) {
	if answer == nil {
		r.faults.Store(nil)
		return
	}
	r.faults.Store(&answer)
}

// BasicAuth is a fault that asks for a user name and a password.
func BasicAuth(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

// busybox are the places where Debian's busybox-static and its like have the file.
func busybox() string {
	for _, file := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static"} {
		raw, err := os.ReadFile(file) //nolint:gosec // one of the names above
		// A static executable names no interpreter.
		if err == nil && !bytes.Contains(raw[:min(len(raw), 4096)], []byte("/ld-")) {
			return file
		}
	}
	return ""
}

// PushBase pushes a small image with busybox's /bin/sh and tools to repository and
// returns it, pinned. Options are those of the push. Without a static busybox on this
// machine the test is skipped.
func PushBase(tb testing.TB, repository string, options ...remote.Option) builder.Image {
	tb.Helper()
	file := busybox()
	if file == "" {
		tb.Skip("SKIPPED: no static busybox for a base image; get it with: apt-get install busybox-static")
	}
	program, err := os.ReadFile(file) //nolint:gosec // found above
	if err != nil {
		tb.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			tb.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "root/", "home/", "home/user/", "var/", "usr/", "usr/lib/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for tool := range strings.FieldsSeq("sh cat cp dd df echo env false find grep head id kill ln ls mkdir mknod mount nc ps pwd rm seq sleep stat sync test touch tr true umount unshare wc whoami wget yes chown chmod mkfifo") {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + tool, Linkname: "busybox", Mode: 0o777}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\n"))
	// Another owner, which needs more than one mapped id.
	add(tar.Header{Typeflag: tar.TypeReg, Name: "home/user/file", Mode: 0o600, Uid: 1000, Gid: 1000}, []byte("hello\n"))
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	img, err := image(layer.Bytes())
	if err != nil {
		tb.Fatal(err)
	}
	return pushImage(tb, img, repository+":latest", options...)
}

func image(layer []byte) (v1.Image, error) {
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil },
		tarball.WithMediaType(types.DockerLayer))
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	})
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	return mutate.AppendLayers(img, l)
}

func pushImage(tb testing.TB, img v1.Image, target string, options ...remote.Option) builder.Image {
	tb.Helper()
	ref, err := name.ParseReference(target)
	if err != nil {
		tb.Fatal(err)
	}
	if err := remote.Write(ref, img, options...); err != nil {
		tb.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		tb.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		tb.Fatal(err)
	}
	var size int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			tb.Fatal(err)
		}
		size += n
	}
	return builder.Image{Ref: target, Digest: digest.String(), Size: size}
}

// NewPlan returns a plan that builds the instructions on base and pushes to
// repository. Its build id follows from name, so that equal names are equal builds.
func NewPlan(base builder.Image, repository, name string, instructions ...string) builder.Plan {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	from := "scratch"
	if base.Digest != "" {
		from = strings.TrimSuffix(base.Ref, ":latest") + "@" + base.Digest
	} else {
		base.Ref = builder.Scratch
	}
	return builder.Plan{
		BuildID: id, Attempt: 1, Base: base,
		Dockerfile:  "FROM " + from + "\n" + strings.Join(instructions, "\n") + "\n",
		Destination: repository + ":kiln-" + id,
		Platform:    "linux/" + runtime.GOARCH,
		Executor:    builder.DefaultExecutor(),
		Limits:      builder.Limits{Timeout: time.Minute},
	}
}
