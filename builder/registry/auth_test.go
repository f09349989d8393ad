package registry

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

const password = "correct-horse-battery"

// basicAuth asks for a user name and the password that is current.
func basicAuth(current *atomic.Value) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, ok := r.BasicAuth(); ok && user == "kiln" && pass == current.Load() {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		// A server that repeats what it was sent.
		http.Error(w, "wrong: "+r.Header.Get("Authorization")+" "+password, http.StatusUnauthorized)
		return true
	}
}

func TestCredentialsOfTheDockerConfig(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var current atomic.Value
	current.Store(password)
	s.set(basicAuth(&current))
	img := image(t, "amd64")
	push(t, s.host+"/x:1", img, remote.WithAuth(&authn.Basic{Username: "kiln", Password: password}))
	ref := s.host + "/x@" + digestOf(t, img)

	r := newRegistry(t, Config{DockerConfig: configFile(t, authConfig(s.host, password))})
	if _, err := r.Resolve(t.Context(), s.host+"/x:1", "linux/amd64"); err != nil {
		t.Error(err)
	}
	if err := r.Tag(t.Context(), ref, s.host+"/x:2"); err != nil {
		t.Error(err)
	}
	for name, content := range map[string]string{
		"none":           `{}`,
		"another host's": authConfig("other.example", password),
		"wrong":          authConfig(s.host, "another-password"),
	} {
		r := newRegistry(t, Config{DockerConfig: configFile(t, content)})
		_, err := r.Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
		wantKind(t, err, builder.KindPullDenied)
		for _, secret := range []string{password, "another-password"} {
			if err != nil && strings.Contains(err.Error(), secret) && strings.Contains(content, encoded(secret)) {
				t.Errorf("%s credentials: error shows %q: %v", name, secret, err)
			}
		}
	}
}

func TestRotatedCredentialsAreUsed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var current atomic.Value
	current.Store(password)
	s.set(basicAuth(&current))
	img := image(t, "amd64")
	push(t, s.host+"/x:1", img, remote.WithAuth(&authn.Basic{Username: "kiln", Password: password}))
	path := configFile(t, authConfig(s.host, password))
	r := newRegistry(t, Config{DockerConfig: path})
	ref := s.host + "/x@" + digestOf(t, img)
	if err := r.Verify(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	current.Store("a-new-password")
	if err := os.WriteFile(path, []byte(authConfig(s.host, "a-new-password")), 0o600); err != nil {
		t.Fatal(err)
	}
	age(r, sessionAge/2)
	if err := r.Verify(t.Context(), ref); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
}

func TestCredentialHelpersOfTheDockerConfig(t *testing.T) {
	s := newServer(t)
	var current atomic.Value
	current.Store(password)
	s.set(basicAuth(&current))
	img := image(t, "amd64")
	push(t, s.host+"/x:1", img, remote.WithAuth(&authn.Basic{Username: "kiln", Password: password}))
	dir := t.TempDir()
	helper := "#!/bin/sh\necho '{\"ServerURL\":\"x\",\"Username\":\"kiln\",\"Secret\":\"" + password + "\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-kilntest"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, content := range []string{
		`{"credHelpers":{"` + s.host + `":"kilntest"}}`, `{"credsStore":"kilntest"}`,
	} {
		r := newRegistry(t, Config{DockerConfig: configFile(t, content)})
		if err := r.Verify(t.Context(), s.host+"/x@"+digestOf(t, img)); err != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
	r := newRegistry(t, Config{DockerConfig: configFile(t, `{"credHelpers":{"`+s.host+`":"missing"}}`)})
	err := r.Verify(t.Context(), s.host+"/x@"+digestOf(t, img))
	wantKind(t, err, builder.KindUnavailable)
}

func TestDefaultDockerConfig(t *testing.T) {
	s := newServer(t)
	var current atomic.Value
	current.Store(password)
	s.set(basicAuth(&current))
	img := image(t, "amd64")
	push(t, s.host+"/x:1", img, remote.WithAuth(&authn.Basic{Username: "kiln", Password: password}))
	path := configFile(t, authConfig(s.host, password))
	t.Setenv("DOCKER_CONFIG", filepath.Dir(path))
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	if err := r.Verify(t.Context(), s.host+"/x@"+digestOf(t, img)); err != nil {
		t.Error(err)
	}
	if text := r.Redactor().Text("it is " + password); text != "it is ***" {
		t.Errorf("the password is shown: %s", text)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a broken default config was accepted")
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := New(Config{}); err != nil {
		t.Errorf("without any config: %v", err)
	}
}

func TestBrokenDockerConfigIsAnErrorAtStart(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"missing":  filepath.Join(t.TempDir(), "none.json"),
		"no JSON":  configFile(t, `{"auths":{"h":{"auth":"`+password+`"`),
		"no auth":  configFile(t, `{"auths":{"h":{"auth":"`+base64.StdEncoding.EncodeToString([]byte(password))+`"}}}`),
		"no 64":    configFile(t, `{"auths":{"h":{"auth":"!!`+password+`"}}}`),
		"a folder": t.TempDir(),
	} {
		_, err := New(Config{DockerConfig: path})
		if err == nil {
			t.Errorf("%s: the config was accepted", name)
			continue
		}
		if !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: error names no path or shows a secret: %v", name, err)
		}
	}
}

func TestSecretsOfTheDockerConfigAreHiddenFromTheStart(t *testing.T) {
	t.Parallel()
	secrets := []string{encoded(password), password, "id-token", "reg-token"}
	r := newRegistry(t, Config{DockerConfig: configFile(t,
		`{"auths":{"a":{"auth":"`+secrets[0]+`"},"b":{"identitytoken":"id-token"},"c":{"registrytoken":"reg-token"},"d":{}}}`)})
	for _, secret := range secrets {
		if got := r.Redactor().Text("<" + secret + ">"); got != "<***>" {
			t.Errorf("%q is shown as %q", secret, got)
		}
	}
}

func TestConfigReportsEveryFault(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Insecure: []string{"http://a.example", "b.example/path", "", "c d"}, Timeout: -1, CopyTimeout: -1})
	if err == nil {
		t.Fatal("a wrong configuration was accepted")
	}
	for _, part := range []string{`"http://a.example"`, `"b.example/path"`, `""`, `"c d"`, "timeout -1ns", "copy timeout"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error does not speak of %s: %v", part, err)
		}
	}
}

func TestInsecureHosts(t *testing.T) {
	t.Parallel()
	cfg := Config{Insecure: []string{"lan.example:5000", "plain.example"}}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "LOCALHOST:5000": true, "127.0.0.1": true, "127.0.0.1:80": true, "127.9.8.7:5000": true,
		"[::1]:5000": true, "[::1]": true, "::1": true, "lan.example:5000": true, "LAN.example:5000": true, "plain.example": true,
		"lan.example": false, "lan.example:5001": false, "plain.example:5000": false, "sub.plain.example": false,
		"10.0.0.1:5000": false, "192.168.1.1": false, "172.16.0.1:5000": false, "registry.local": false, "localhost.example": false,
		"127.0.0.1.example": false, "index.docker.io": false, "": false, "0.0.0.0:5000": false,
	} {
		if got := cfg.IsInsecure(host); got != want {
			t.Errorf("IsInsecure(%q) = %t, want %t", host, got, want)
		}
	}
}

func TestPlainHTTPOnlyWhereItIsConfigured(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/x:1", image(t, "amd64"))
	s.countAll()
	for _, host := range []string{"10.1.2.3:5000", "192.168.7.7:5000", "registry.local:5000", "registry.local", "registry.example:5000"} {
		r := newRegistry(t, Config{})
		dialTo(r, map[string]*httptest.Server{"": s.Server})
		_, err := r.Resolve(t.Context(), host+"/x:1", "linux/amd64")
		wantKind(t, err, builder.KindUnavailable)
		if n := s.countAll(); n != 0 {
			t.Errorf("%s was asked %d times by plain HTTP", host, n)
		}
		r = newRegistry(t, Config{Insecure: []string{host}})
		dialTo(r, map[string]*httptest.Server{"": s.Server})
		if _, err := r.Resolve(t.Context(), host+"/x:1", "linux/amd64"); err != nil {
			t.Errorf("%s is configured as insecure: %v", host, err)
		}
		s.countAll()
	}
}

func TestUntrustedTLSDoesNotFallBack(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(newHandler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.Close)
	for _, host := range []string{"registry.example", "10.1.2.3:5000", "registry.local"} {
		r := newRegistry(t, Config{})
		dialTo(r, map[string]*httptest.Server{"": s})
		_, err := r.Resolve(t.Context(), host+"/x:1", "linux/amd64")
		wantKind(t, err, builder.KindUnavailable)
		if err != nil && !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: error does not speak of the certificate: %v", host, err)
		}
	}
}

func TestRedirectToPlainHTTPIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var reached atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	t.Cleanup(elsewhere.Close)
	s.set(only(http.MethodGet, "/manifests/", func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "http://storage.example/x", http.StatusTemporaryRedirect)
		return true
	}))
	push(t, s.host+"/x:1", image(t, "amd64"))
	r := newRegistry(t, Config{})
	loopback := new(net.Dialer).DialContext
	r.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "storage.example") {
			addr = elsewhere.Listener.Addr().String()
		}
		return loopback(ctx, network, addr)
	}
	r.transport.Proxy = nil
	_, err := r.Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
	wantKind(t, err, builder.KindUnavailable)
	if reached.Load() {
		t.Error("the redirect was followed")
	}
	if err != nil && !strings.Contains(err.Error(), "storage.example") {
		t.Errorf("error does not name the host: %v", err)
	}
}

func TestErrorsAreShort(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(strings.Repeat("<p>\n go away ü", 4000)))
		return true
	})
	_, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
	wantKind(t, err, builder.KindPullDenied)
	if err != nil && (len(err.Error()) > 700 || strings.Contains(err.Error(), "\n")) {
		t.Errorf("error has %d bytes or several lines: %.100s…", len(err.Error()), err)
	}
}
