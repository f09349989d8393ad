package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/rs/zerolog"
)

func openRegistry(t *testing.T, dir, addr string) *embeddedRegistry {
	t.Helper()
	r, err := startRegistry(t.Context(), dir, addr, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func closeRegistry(t *testing.T, r *embeddedRegistry) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func reference(t *testing.T, ref string) name.Reference {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestImagesSurviveARestartOfTheRegistry(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deep", "registry")
	r := openRegistry(t, dir, "127.0.0.1:0")
	img, err := random.Image(1<<20, 3)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := random.Index(1<<10, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference(t, r.Addr()+"/ml/trainer:latest"), img); err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(reference(t, r.Addr()+"/base:1"), idx); err != nil {
		t.Fatal(err)
	}
	closeRegistry(t, r)

	r = openRegistry(t, dir, "127.0.0.1:0")
	defer closeRegistry(t, r)
	repositories, err := crane.Catalog(r.Addr(), crane.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"base", "ml/trainer"}; !slices.Equal(repositories, want) {
		t.Errorf("catalog = %q, want %q", repositories, want)
	}
	again, err := remote.Image(reference(t, r.Addr()+"/ml/trainer:latest"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(again); err != nil {
		t.Errorf("the image is damaged: %v", err)
	}
	if got, want := hashOf(t, again), hashOf(t, img); got != want {
		t.Errorf("digest = %s, want %s", got, want)
	}
	if _, err := remote.Index(reference(t, r.Addr()+"/base@"+hashOf(t, idx))); err != nil {
		t.Error(err)
	}
}

func hashOf(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestRegistryMovesTagsAndDeletes(t *testing.T) {
	t.Parallel()
	r := openRegistry(t, t.TempDir(), "localhost:0")
	defer closeRegistry(t, r)
	var digests []string
	for range 2 {
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(reference(t, r.Addr()+"/x:latest"), img); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, hashOf(t, img))
	}
	if got, err := crane.Digest(r.Addr()+"/x:latest", crane.Insecure); err != nil || got != digests[1] {
		t.Errorf("the tag names %s (%v), want %s", got, err, digests[1])
	}
	if err := crane.Delete(r.Addr()+"/x@"+digests[0], crane.Insecure); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := crane.Digest(r.Addr()+"/x@"+digests[0], crane.Insecure); err == nil {
		t.Error("a deleted image can still be read")
	}
}

func TestRegistryListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:5000", "example.com:5000", "127.0.0.1", ""} {
		dir := filepath.Join(t.TempDir(), "registry")
		if r, err := startRegistry(t.Context(), dir, addr, zerolog.Nop()); err == nil {
			_ = r.Close()
			t.Errorf("address %q was accepted", addr)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("address %q was refused, but its directory made", addr)
		}
	}
	r := openRegistry(t, t.TempDir(), "127.0.0.1:0")
	defer closeRegistry(t, r)
	if host, _, err := net.SplitHostPort(r.Addr()); err != nil || !net.ParseIP(host).IsLoopback() {
		t.Errorf("Addr = %q, want a loopback address", r.Addr())
	}
}

func TestRegistryNeedsItsAddressAndDirectory(t *testing.T) {
	t.Parallel()
	r := openRegistry(t, t.TempDir(), "127.0.0.1:0")
	defer closeRegistry(t, r)
	if _, err := startRegistry(t.Context(), t.TempDir(), r.Addr(), zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "--registry-addr") {
		t.Errorf("error = %v, want one that says which flag chooses another address", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := startRegistry(t.Context(), filepath.Join(file, "registry"), "127.0.0.1:0", zerolog.Nop()); err == nil {
		t.Error("a directory inside of a file was accepted")
	}
}

func TestRegistryOutlivesTheContextOfItsStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := startRegistry(ctx, t.TempDir(), "127.0.0.1:0", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := crane.Catalog(r.Addr(), crane.Insecure); err != nil {
		t.Error(err)
	}
	began := time.Now()
	closeRegistry(t, r)
	if took := time.Since(began); took > registryGrace {
		t.Errorf("closing took %s", took)
	}
	if _, err := crane.Catalog(r.Addr(), crane.Insecure); err == nil {
		t.Error("a closed registry answers")
	}
}

func TestClosingTheRegistryDoesNotWaitForSilentConnections(t *testing.T) {
	t.Parallel()
	r := openRegistry(t, t.TempDir(), "127.0.0.1:0")
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := crane.Catalog(r.Addr(), crane.Insecure); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	closeRegistry(t, r)
	if took := time.Since(began); took > registryGrace/2 {
		t.Errorf("closing took %s", took)
	}
}

func TestClosingTheRegistryCutsHangingRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := openRegistry(t, dir, "127.0.0.1:0")
	conn := hangingUpload(t, r.Addr())
	defer conn.Close()
	deadline := time.Now().Add(10 * time.Second)
	for !receiving(t, dir) {
		if time.Now().After(deadline) {
			t.Fatal("the upload does not arrive")
		}
		time.Sleep(5 * time.Millisecond)
	}
	began := time.Now()
	closeRegistry(t, r)
	if took := time.Since(began); took < registryGrace-time.Second || took > registryGrace+5*time.Second {
		t.Errorf("closing took %s, want %s", took, registryGrace)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); strings.Contains(string(answer), " 202 ") || os.IsTimeout(err) {
		t.Errorf("half of an upload was answered with %q, %v", answer, err)
	}
}

// hangingUpload begins an upload whose body never ends.
func hangingUpload(t *testing.T, addr string) net.Conn {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v2/x/blobs/uploads/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	started, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = started.Body.Close()
	upload, err := started.Location()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	head := "PATCH " + upload.RequestURI() + " HTTP/1.1\r\nHost: " + addr +
		"\r\nContent-Type: application/octet-stream\r\nContent-Length: 10000000\r\n\r\n"
	if _, err := io.WriteString(conn, head+strings.Repeat("x", 1<<20)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// receiving reports whether a part of an upload is on disk.
func receiving(t *testing.T, dir string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Base(path) != "data" {
			return nil //nolint:nilerr // files come and go meanwhile
		}
		if info, err := entry.Info(); err == nil && info.Size() > 0 && strings.Contains(path, "_uploads") {
			found = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// lines collects log output.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// TestRegistryLogsAtDebugLevel runs alone: the library's logger is global.
func TestRegistryLogsAtDebugLevel(t *testing.T) { //nolint:paralleltest // it looks at the library's global logger
	for level, want := range map[zerolog.Level]bool{zerolog.InfoLevel: false, zerolog.DebugLevel: true} {
		var out lines
		r, err := startRegistry(t.Context(), t.TempDir(), "127.0.0.1:0", zerolog.New(&out).Level(level))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := crane.Digest(r.Addr()+"/none:1", crane.Insecure); err == nil {
			t.Error("a missing image has a digest")
		}
		closeRegistry(t, r)
		out.mu.Lock()
		text := out.buf.String()
		out.mu.Unlock()
		if got := strings.Contains(text, "/v2/none/manifests/1"); got != want {
			t.Errorf("at level %s the request is logged: %t, want %t\n%s", level, got, want, text)
		}
		if strings.Contains(text, `"level":"info"`) || strings.Contains(text, `"level":"error"`) {
			t.Errorf("at level %s the library logs above debug:\n%s", level, text)
		}
	}
	routeLogrus(zerolog.Nop())
}
