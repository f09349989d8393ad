package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	memory "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// server is an in-memory registry on loopback. Its behaviour can be changed while
// it runs, and it counts requests by "METHOD kind".
type server struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests map[string]int
	behave   func(w http.ResponseWriter, r *http.Request) (handled bool)
}

func newHandler() http.Handler {
	return memory.New(memory.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{requests: map[string]int{}}
	s.Server = httptest.NewServer(s.wrap(newHandler()))
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *server) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := "ping"
		for _, k := range []string{"manifests", "blobs"} {
			if strings.Contains(r.URL.Path, "/"+k+"/") {
				kind = k
			}
		}
		s.mu.Lock()
		s.requests[r.Method+" "+kind]++
		behave := s.behave
		s.mu.Unlock()
		if behave == nil || !behave(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// set changes what the server does; nil is the registry as it is.
func (s *server) set(behave func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behave = behave
}

// count returns how many requests of a kind there were since the last call.
func (s *server) count(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.requests[kind]
	s.requests[kind] = 0
	return n
}

// countAll returns how many requests there were since they were counted last.
func (s *server) countAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.requests {
		n += c
	}
	clear(s.requests)
	return n
}

// answer makes a behaviour of a status and an OCI error code.
func answer(status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"says the test"}]}`, code)
		return true
	}
}

// only restricts a behaviour to requests of a method whose path contains part.
func only(method, part string, behave func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == method && strings.Contains(r.URL.Path, part) && behave(w, r)
	}
}

// image makes an image of two random layers for a platform.
func image(t *testing.T, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(512, 2)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

// index makes an index of images, one for each platform.
func index(t *testing.T, platforms ...string) (v1.ImageIndex, map[string]v1.Image) {
	t.Helper()
	idx := v1.ImageIndex(empty.Index)
	images := map[string]v1.Image{}
	for _, p := range platforms {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		images[p] = image(t, platform.Architecture)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: images[p], Descriptor: v1.Descriptor{Platform: platform}})
	}
	return idx, images
}

func digestOf(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func push(t *testing.T, ref string, what remote.Taggable, options ...remote.Option) {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, what, options...)
	case v1.Image:
		err = remote.Write(parsed, what, options...)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

// emptyConfig is a docker config without credentials, so that the developer's own
// is not used.
func emptyConfig(t *testing.T) string {
	t.Helper()
	return configFile(t, `{}`)
}

func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// authConfig is a docker config with a password for the user "kiln".
func authConfig(host, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, encoded(password))
}

// encoded is what an "auth" entry holds for the user "kiln".
func encoded(password string) string {
	return base64.StdEncoding.EncodeToString([]byte("kiln:" + password))
}

// age makes the sessions of a registry older.
func age(r *Registry, by time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		s.born = s.born.Add(-by)
	}
}

// dialTo makes every connection of r go to a test server, by host or, under "", for all
// others.
func dialTo(r *Registry, servers map[string]*httptest.Server) {
	r.transport.Proxy = nil
	r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		for _, known := range []string{addr, host, ""} {
			if s := servers[known]; s != nil {
				return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
			}
		}
		return nil, fmt.Errorf("connection to %s:%s refused by the test", host, port)
	}
}

func newRegistry(t *testing.T, cfg Config) *Registry {
	t.Helper()
	if cfg.DockerConfig == "" {
		cfg.DockerConfig = emptyConfig(t)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func wantKind(t *testing.T, err error, want builder.Kind) {
	t.Helper()
	if e, ok := err.(*builder.Error); !ok || e.Kind != want { //nolint:errorlint // the outermost error has to be of the type
		t.Errorf("error = %v (%T of kind %s), want a *builder.Error of kind %s", err, err, builder.KindOf(err), want)
	}
}

// headDigest reads the digest that a reference names, past the code under test.
func headDigest(t *testing.T, ref string) string {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(parsed, remote.WithContext(context.WithoutCancel(t.Context())))
	if err != nil {
		t.Fatalf("read %s: %v", ref, err)
	}
	return desc.Digest.String()
}

// route lets connections to an address through.
func route(others func(ctx context.Context, network, addr string) (net.Conn, error), through string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == through {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		return others(ctx, network, addr)
	}
}
