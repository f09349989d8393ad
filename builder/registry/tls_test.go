package registry

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
	"kiln/builder/enginetest"
)

// roundTripper makes requests as Kiln would with the settings of one host.
func roundTripper(t *testing.T, host string, h Host) http.RoundTripper {
	t.Helper()
	next, err := newRegistry(t, Config{Hosts: map[string]Host{host: h}}).newTransport(host)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestRegistriesBehindTLSOfTheirOwn(t *testing.T) {
	t.Parallel()
	for name, guard := range map[string]enginetest.Guard{
		"anonymous":          {},
		"basic":              {User: "kiln", Password: password},
		"token":              {User: "kiln", Password: password, Token: true},
		"client certificate": {ClientCert: true},
		"everything":         {User: "kiln", Password: password, ClientCert: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := enginetest.NewAuthority(t)
			cert, key := ca.Issue(t)
			s := enginetest.NewSecureRegistry(t, ca, guard)
			host := Host{CA: ca.File}
			if guard.ClientCert {
				host.Cert, host.Key = cert, key
			}
			img := image(t, "amd64")
			push(t, s.Host+"/x:1", img, remote.WithTransport(roundTripper(t, s.Host, host)), remote.WithAuth(&authn.Basic{Username: "kiln", Password: password}))
			right := Config{Hosts: map[string]Host{s.Host: host}, Secrets: store{"s": {keyConfig: authConfig(s.Host, password)}, "wrong": {keyConfig: authConfig(s.Host, "wrong-password")}}}
			r := newRegistry(t, right)
			ref := s.Host + "/x@" + digestOf(t, img)
			if _, err := r.With("s").Resolve(t.Context(), s.Host+"/x:1", "linux/amd64"); err != nil {
				t.Error(err)
			}
			if err := r.With("s").Tag(t.Context(), ref, s.Host+"/y:1"); err != nil {
				t.Error(err)
			}
			if err := r.With("s").Prepare(t.Context(), s.Host+"/z:1"); err != nil {
				t.Error(err)
			}
			if err := r.With("s").Verify(t.Context(), s.Host+"/y@"+digestOf(t, img)); err != nil {
				t.Error(err)
			}
			if guard.User != "" {
				wantKind(t, r.Verify(t.Context(), ref), builder.KindPullDenied)
				wantKind(t, r.With("wrong").Verify(t.Context(), ref), builder.KindPullDenied)
				wantKind(t, r.With("wrong").Prepare(t.Context(), s.Host+"/z:1"), builder.KindPushDenied)
			}
			wantUntrusted(t, right, s.Host, guard)
		})
	}
}

// wantUntrusted checks that a host is not reached with less than it asks for.
func wantUntrusted(t *testing.T, right Config, host string, guard enginetest.Guard) {
	t.Helper()
	stranger := enginetest.NewAuthority(t)
	h := right.Hosts[host]
	wrong := map[string]Host{"no CA": {Cert: h.Cert, Key: h.Key, Mirrors: []string{"unused.example"}}, "another CA": {CA: stranger.File, Cert: h.Cert, Key: h.Key}}
	if guard.ClientCert {
		wrong["no client certificate"] = Host{CA: h.CA}
		cert, key := stranger.Issue(t)
		wrong["a stranger's certificate"] = Host{CA: h.CA, Cert: cert, Key: key}
	}
	for name, h := range wrong {
		cfg := right
		cfg.Hosts = map[string]Host{host: h}
		err := newRegistry(t, cfg).With("s").Prepare(t.Context(), host+"/z:1")
		wantKind(t, err, builder.KindUnavailable)
		if err != nil && !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCAOfEveryRegistryAndSkippedVerification(t *testing.T) {
	t.Parallel()
	ca := enginetest.NewAuthority(t)
	one, other := enginetest.NewSecureRegistry(t, ca, enginetest.Guard{}), enginetest.NewSecureRegistry(t, enginetest.NewAuthority(t), enginetest.Guard{})
	for name, tc := range map[string]struct {
		cfg        Config
		one, other bool
	}{
		"nothing":          {Config{}, false, false},
		"CA":               {Config{CA: ca.File}, true, false},
		"CA and no check":  {Config{CA: ca.File, Hosts: map[string]Host{other.Host: {SkipTLSVerify: true}}}, true, true},
		"no check for one": {Config{Hosts: map[string]Host{one.Host: {SkipTLSVerify: true}}}, true, false},
	} {
		r := newRegistry(t, tc.cfg)
		if err := r.Prepare(t.Context(), one.Host+"/x:1"); (err == nil) != tc.one {
			t.Errorf("%s: the one registry: %v", name, err)
		}
		if err := r.Prepare(t.Context(), other.Host+"/x:1"); (err == nil) != tc.other {
			t.Errorf("%s: the other registry: %v", name, err)
		}
	}
}

func TestTLSIsNeverGivenUp(t *testing.T) {
	t.Parallel()
	s := newServer(t) // plain HTTP on loopback
	ca := enginetest.NewAuthority(t)
	for name, h := range map[string]Host{"CA": {CA: ca.File}, "no check": {SkipTLSVerify: true}} {
		s.countAll()
		wantKind(t, newRegistry(t, Config{Hosts: map[string]Host{s.host: h}}).Prepare(t.Context(), s.host+"/x:1"), builder.KindUnavailable)
		if n := s.countAll(); n > 0 {
			t.Errorf("%s: %d requests in the clear", name, n)
		}
	}
}

func TestClientCertificateIsShownToItsRegistryOnly(t *testing.T) {
	t.Parallel()
	ca := enginetest.NewAuthority(t)
	cert, key := ca.Issue(t)
	var shown atomic.Int32
	elsewhere := enginetest.NewSecureRegistry(t, ca, enginetest.Guard{AskClientCert: true})
	elsewhere.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if len(r.TLS.PeerCertificates) > 0 {
			shown.Add(1)
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	s := enginetest.NewSecureRegistry(t, ca, enginetest.Guard{ClientCert: true})
	var redirected atomic.Int32
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		redirected.Add(1)
		http.Redirect(w, r, "https://"+strings.Replace(elsewhere.Host, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	r := newRegistry(t, Config{Hosts: map[string]Host{s.Host: {CA: ca.File, Cert: cert, Key: key}}})
	_, err := r.Resolve(t.Context(), s.Host+"/x:1", "linux/amd64")
	wantKind(t, err, builder.KindBaseNotFound)
	if redirected.Load() == 0 || shown.Load() > 0 {
		t.Errorf("redirected %d times, the certificate was shown %d times", redirected.Load(), shown.Load())
	}
}

func TestRotatedCertificatesAreUsed(t *testing.T) {
	t.Parallel()
	old, current := enginetest.NewAuthority(t), enginetest.NewAuthority(t)
	s := enginetest.NewSecureRegistry(t, current, enginetest.Guard{ClientCert: true})
	dir := t.TempDir()
	copyFile := func(name, from string) string {
		raw, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	cert, key := old.Issue(t)
	h := Host{CA: copyFile("ca", old.File), Cert: copyFile("cert", cert), Key: copyFile("key", key)}
	r := newRegistry(t, Config{Hosts: map[string]Host{s.Host: h}})
	wantKind(t, r.Prepare(t.Context(), s.Host+"/x:1"), builder.KindUnavailable)
	cert, key = current.Issue(t)
	copyFile("ca", current.File)
	copyFile("cert", cert)
	copyFile("key", key)
	age(r, sessionAge+time.Second)
	if err := r.Prepare(t.Context(), s.Host+"/x:1"); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	access, err := r.Reach(s.Host)
	want, _ := os.ReadFile(key)
	if err != nil || strings.TrimSpace(string(access.ClientKey)) != strings.TrimSpace(string(want)) || access.Insecure {
		t.Errorf("Reach = %+v, %v", access, err)
	}
}

func TestBrokenTLSSettingsAreErrorsAtStart(t *testing.T) {
	t.Parallel()
	ca := enginetest.NewAuthority(t)
	cert, key := ca.Issue(t)
	_, otherKey := ca.Issue(t)
	for name, cfg := range map[string]Config{
		"no CA file":         {CA: "/nowhere/ca.pem"},
		"CA without PEM":     {CA: configFile(t, "x")},
		"host: no CA file":   {Hosts: map[string]Host{"h.example": {CA: "/nowhere/ca.pem"}}},
		"host: no cert file": {Hosts: map[string]Host{"h.example": {Cert: "/nowhere/c", Key: key}}},
		"host: no key file":  {Hosts: map[string]Host{"h.example": {Cert: cert, Key: "/nowhere/k"}}},
		"another's key":      {Hosts: map[string]Host{"h.example": {Cert: cert, Key: otherKey}}},
		"cert without key":   {Hosts: map[string]Host{"h.example": {Cert: cert}}},
		"insecure and CA":    {Hosts: map[string]Host{"h.example": {Insecure: true, CA: ca.File}}},
		"no check and CA":    {Hosts: map[string]Host{"h.example": {SkipTLSVerify: true, CA: ca.File}}},
		"URL":                {Hosts: map[string]Host{"https://h.example": {}}},
		"argument":           {Hosts: map[string]Host{"h.example=x --force": {}}},
		"twice":              {Hosts: map[string]Host{"docker.io": {}, "index.docker.io": {}}},
		"itself":             {Hosts: map[string]Host{"docker.io": {Mirrors: []string{"index.docker.io"}}}},
		"mirror URL":         {Hosts: map[string]Host{"h.example": {Mirrors: []string{"https://m.example"}}}},
		"mirror argument":    {Hosts: map[string]Host{"h.example": {Mirrors: []string{"m.example/x;y=z"}}}},
		"mirror dots":        {Hosts: map[string]Host{"h.example": {Mirrors: []string{"m.example/docker.io"}}}},
		"mirror traversal":   {Hosts: map[string]Host{"h.example": {Mirrors: []string{"m.example/../x"}}}},
		"cloud":              {Clouds: []string{"ecr", "s3"}},
	} {
		if r, err := New(cfg); err == nil {
			r.Close()
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
	}
}

func TestMirrorsAreReadFirst(t *testing.T) {
	t.Parallel()
	origin, hub, flat := newServer(t), newServer(t), newServer(t)
	img, stale := image(t, "amd64"), image(t, "amd64")
	push(t, origin.host+"/team/x:1", img)
	push(t, origin.host+"/team/only-here:1", img)
	push(t, hub.host+"/hub/team/x:1", img)
	push(t, flat.host+"/team/x:1", stale)
	var current atomic.Value
	current.Store(password)
	hub.set(basicAuth(&current))
	r := newRegistry(t, Config{
		Secrets: store{"s": {keyConfig: authConfig(hub.host, password)}},
		Hosts:   map[string]Host{origin.host: {Mirrors: []string{"127.0.0.1:1", hub.host + "/hub/", flat.host}}},
	})
	resolve := func(secret, repository, want string, asked, notAsked *server) {
		t.Helper()
		for _, s := range []*server{origin, hub, flat} {
			s.countAll()
		}
		got, err := r.With(secret).Resolve(t.Context(), origin.host+repository, "linux/amd64")
		if err != nil || got.Digest != want || got.Ref != origin.host+repository {
			t.Errorf("%s with %q: %+v, %v, want %s", repository, secret, got, err, want)
		}
		if asked.countAll() == 0 || notAsked.countAll() > 0 {
			t.Errorf("%s with %q: the wrong registry was asked", repository, secret)
		}
	}
	resolve("s", "/team/x:1", digestOf(t, img), hub, origin)
	resolve("", "/team/x:1", digestOf(t, stale), flat, origin)
	resolve("s", "/team/only-here:1", digestOf(t, img), origin, newServer(t))
	resolve("s", "/team/x@"+digestOf(t, img), digestOf(t, img), hub, origin)

	// What nobody has is told by the registry itself, with the mirrors' answers.
	_, err := r.Resolve(t.Context(), origin.host+"/team/none:1", "linux/amd64")
	wantKind(t, err, builder.KindBaseNotFound)
	if err != nil && (!strings.Contains(err.Error(), "mirror 127.0.0.1:1") || !strings.Contains(err.Error(), "mirror "+flat.host)) {
		t.Errorf("error does not speak of the mirrors: %v", err)
	}
	// Nothing else goes to mirrors.
	hub.countAll()
	flat.countAll()
	ref := origin.host + "/team/x@" + digestOf(t, img)
	if err := r.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if err := r.Tag(t.Context(), ref, origin.host+"/team/x:2"); err != nil {
		t.Error(err)
	}
	if n := hub.countAll() + flat.countAll(); n > 0 {
		t.Errorf("mirrors were asked %d times", n)
	}
}

func TestMirrorOfDockerHub(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/hub/library/python:3.12", img)
	r := newRegistry(t, Config{Hosts: map[string]Host{"docker.io": {Mirrors: []string{"mirror.example/hub"}}}, Insecure: []string{"mirror.example"}})
	dialTo(r, map[string]*httptest.Server{"mirror.example": s.Server})
	got, err := r.Resolve(t.Context(), "python:3.12", "linux/amd64")
	if err != nil || got.Digest != digestOf(t, img) {
		t.Errorf("Resolve = %+v, %v", got, err)
	}
}

func TestSilentMirrorLeavesTimeForTheRegistry(t *testing.T) {
	t.Parallel()
	origin, silent := newServer(t), newServer(t)
	push(t, origin.host+"/x:1", image(t, "amd64"))
	silent.set(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	r := newRegistry(t, Config{Timeout: 2 * time.Second, Hosts: map[string]Host{origin.host: {Mirrors: []string{silent.host}}}})
	if _, err := r.Resolve(t.Context(), origin.host+"/x:1", "linux/amd64"); err != nil {
		t.Error(err)
	}
}
