package sandbox

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/registry"
)

// images returns a client of registries without the developer's own credentials.
func images(tb testing.TB, cfg registry.Config) *registry.Registry {
	tb.Helper()
	if cfg.DockerConfig == "" {
		cfg.DockerConfig = writeFile(tb, filepath.Join(tb.TempDir(), "config.json"), "{}")
	}
	r, err := registry.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	return r
}

func writeFile(tb testing.TB, path, content string) string {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// logins is a docker config for hosts and their "user:password".
func logins(entries ...string) string {
	var auths []string
	for i := 0; i+1 < len(entries); i += 2 {
		auths = append(auths, fmt.Sprintf(`%q:{"auth":%q}`, entries[i], base64.StdEncoding.EncodeToString([]byte(entries[i+1]))))
	}
	return `{"auths":{` + strings.Join(auths, ",") + `}}`
}

// secure is a site whose base and target are in registries of different authorities,
// users and kinds of authentication; the base's asks for a client certificate.
type secure struct {
	from, to         *enginetest.Registry
	fromCA, toCA     *enginetest.Authority
	fromUser, toUser authn.Basic
	clientCert       string
	clientKey        string
	base             builder.Image
	secrets          string
	config           registry.Config
}

func newSecure(tb testing.TB) secure {
	tb.Helper()
	s := secure{
		fromCA: enginetest.NewAuthority(tb), toCA: enginetest.NewAuthority(tb), secrets: tb.TempDir(),
		fromUser: authn.Basic{Username: "reader", Password: "hush-read-7"}, toUser: authn.Basic{Username: "writer", Password: "hush-write-7"},
	}
	s.clientCert, s.clientKey = s.fromCA.Issue(tb)
	s.from = enginetest.NewSecureRegistry(tb, s.fromCA, enginetest.Guard{User: s.fromUser.Username, Password: s.fromUser.Password, ClientCert: true})
	s.to = enginetest.NewSecureRegistry(tb, s.toCA, enginetest.Guard{User: s.toUser.Username, Password: s.toUser.Password, Token: true})
	s.base = enginetest.PushBase(tb, s.from.Host+"/team/base", remote.WithAuth(&s.fromUser),
		remote.WithTransport(s.fromCA.Transport(tb, s.clientCert, s.clientKey)))
	s.login(tb, s.fromUser.Password, s.toUser.Password)
	s.config = registry.Config{Secrets: registry.Dir(s.secrets), Hosts: map[string]registry.Host{
		s.from.Host: {CA: s.fromCA.File, Cert: s.clientCert, Key: s.clientKey}, s.to.Host: {CA: s.toCA.File},
	}}
	return s
}

// login writes the secret "team-pull-push" with passwords for both registries.
func (s secure) login(tb testing.TB, from, to string) {
	tb.Helper()
	writeFile(tb, filepath.Join(s.secrets, "team-pull-push", ".dockerconfigjson"),
		logins(s.from.Host, s.fromUser.Username+":"+from, "https://"+s.to.Host+"/v2/", s.toUser.Username+":"+to))
}

func (s secure) plan(tb testing.TB, instructions ...string) builder.Plan {
	tb.Helper()
	p := enginetest.NewPlan(s.base, s.to.Host+"/team/image", tb.Name(), instructions...)
	p.RegistrySecret, p.Target = "team-pull-push", s.to.Host+"/team/image:latest"
	return p
}

// builder returns a Builder over an engine and the registries of the site.
func (s secure) builder(tb testing.TB, cfg registry.Config) *builder.Builder {
	tb.Helper()
	known := images(tb, cfg)
	sandboxed := testConfig(tb)
	sandboxed.Registries = known
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: known}, engine(tb, sandboxed), known.Redactor())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestBuildAcrossRegistriesWithTLSAndCredentialsOfTheirOwn has base and target in
// registries of different authorities, users and ways to log in.
func TestBuildAcrossRegistriesWithTLSAndCredentialsOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := newSecure(t)
	b := s.builder(t, s.config)
	key, err := os.ReadFile(s.clientKey)
	if err != nil {
		t.Fatal(err)
	}
	// Patterns that do not find themselves.
	secret := strings.Split(string(key), "\n")[1]
	pattern := secret[:20] + "[" + secret[20:21] + "]"
	plan := s.plan(t, `RUN cat /proc/1/environ && echo OPEN; cat /dev/kiln/* /proc/[0-9]*/environ; env; `+
		`grep -rF -e 'hush-' /dev/kiln /etc /root /tmp || grep -e 'hush-[a-z]*-[7]' -e '`+pattern+`' /dev/kiln/* /proc/[0-9]*/environ || echo nothing`)
	// Another key in the environment, and variables that speak of another user.
	_, other := s.toCA.Issue(t)
	foreign, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	plan.Secrets = []builder.Secret{{ID: "AWS_SECRET_ACCESS_KEY", Value: string(foreign)}}
	plan.BuildArgs = []builder.Arg{{Name: "AWS_ACCESS_KEY_ID", Value: "\n" + string(foreign)}}
	var logs strings.Builder
	result, err := b.Build(t.Context(), plan, &logs)
	if err != nil {
		t.Fatalf("Build: %v\n%s", err, logs.String())
	}
	for _, never := range []string{"***", "hush-read", "hush-write", secret[:20] + secret[20:21], "\nOPEN"} {
		if strings.Contains(logs.String(), never) {
			t.Errorf("a command sees credentials (%s):\n%s", never, logs.String())
		}
	}
	if !strings.Contains(logs.String(), "\nnothing\n") {
		t.Errorf("a command finds credentials:\n%s", logs.String())
	}
	if err := b.Tag(t.Context(), plan, b.ImageRef(plan, result.Digest)); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(plan.Target)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref, remote.WithAuth(&s.toUser), remote.WithTransport(s.toCA.Transport(t)))
	if err != nil || desc.Digest.String() != result.Digest {
		t.Errorf("the registry has %v (%v), want %s", desc, err, result.Digest)
	}
}

func TestWrongCredentialsSayWhichSideRefuses(t *testing.T) {
	t.Parallel()
	s := newSecure(t)
	b := s.builder(t, s.config)
	for _, tc := range []struct {
		name, from, to string
		kind           builder.Kind
		ran            bool
	}{
		{"push", s.fromUser.Password, "wrong-password", builder.KindPushDenied, false},
		{"pull", "wrong-password", s.toUser.Password, builder.KindPullDenied, true},
	} {
		s.login(t, tc.from, tc.to)
		var logs strings.Builder
		_, err := b.Build(t.Context(), s.plan(t, "RUN echo running"), &logs)
		if builder.KindOf(err) != tc.kind {
			t.Errorf("%s: %v (%s), want %s", tc.name, err, builder.KindOf(err), tc.kind)
		}
		if (logs.Len() > 0) != tc.ran || strings.Contains(logs.String(), "running") {
			t.Errorf("%s: log is %q", tc.name, logs.String())
		}
	}
	// Rotated back, the same process builds.
	s.login(t, s.fromUser.Password, s.toUser.Password)
	if _, err := b.Build(t.Context(), s.plan(t, "RUN true"), io.Discard); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	plan := s.plan(t, "RUN true")
	plan.RegistrySecret = "nobody-knows"
	_, err := b.Build(t.Context(), plan, io.Discard)
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "nobody-knows") || !strings.Contains(err.Error(), s.secrets) {
		t.Errorf("missing secret: %v, want invalid_request with name and place", err)
	}
}

func TestBuildWithoutTheCertificatesFails(t *testing.T) {
	t.Parallel()
	s := newSecure(t)
	plain := enginetest.NewRegistry(t)
	for name, host := range map[string]registry.Host{
		"no client certificate": {CA: s.fromCA.File}, "another CA": {CA: s.toCA.File, Cert: s.clientCert, Key: s.clientKey},
	} {
		cfg := s.config
		cfg.Hosts = map[string]registry.Host{s.from.Host: host}
		sandboxed := testConfig(t)
		sandboxed.Registries = images(t, cfg)
		plan := enginetest.NewPlan(s.base, plain.Host+"/team/image", t.Name(), "RUN echo running")
		plan.RegistrySecret = "team-pull-push"
		var logs strings.Builder
		_, err := engine(t, sandboxed).Run(t.Context(), plan, &logs)
		if builder.KindOf(err) != builder.KindUnavailable || strings.Contains(logs.String(), "running") {
			t.Errorf("%s: %v (%s)\n%s", name, err, builder.KindOf(err), logs.String())
		}
	}
}

func TestCAForEveryRegistryAndSkippedVerification(t *testing.T) {
	t.Parallel()
	ca := enginetest.NewAuthority(t)
	cert, key := ca.Issue(t)
	mutual := enginetest.NewSecureRegistry(t, ca, enginetest.Guard{ClientCert: true})
	unknown := enginetest.NewSecureRegistry(t, enginetest.NewAuthority(t), enginetest.Guard{})
	base := enginetest.PushBase(t, mutual.Host+"/base", remote.WithTransport(ca.Transport(t, cert, key)))
	sandboxed := testConfig(t)
	sandboxed.Registries = images(t, registry.Config{CA: ca.File, Hosts: map[string]registry.Host{
		mutual.Host: {Cert: cert, Key: key}, unknown.Host: {SkipTLSVerify: true},
	}})
	var logs strings.Builder
	plan := enginetest.NewPlan(base, unknown.Host+"/team/image", t.Name(), "RUN true")
	if _, err := engine(t, sandboxed).Run(t.Context(), plan, &logs); err != nil {
		t.Errorf("Run: %v\n%s", err, logs.String())
	}
}

func TestBaseComesThroughTheMirror(t *testing.T) {
	t.Parallel()
	origin, mirror := enginetest.NewRegistry(t), enginetest.NewRegistry(t)
	base := enginetest.PushBase(t, origin.Host+"/team/base")
	copied := enginetest.PushBase(t, mirror.Host+"/hub/team/base")
	if copied.Digest != base.Digest {
		t.Fatalf("the copy has digest %s, want %s", copied.Digest, base.Digest)
	}
	var asked atomic.Bool
	origin.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/team/base/") {
			asked.Store(true)
		}
		return false
	})
	for name, tc := range map[string]struct {
		mirror string
		origin bool
	}{"mirror": {mirror.Host + "/hub", false}, "mirror without the image": {mirror.Host, true}, "mirror is down": {"127.0.0.1:1", true}} {
		sandboxed := testConfig(t)
		sandboxed.Registries = images(t, registry.Config{Hosts: map[string]registry.Host{origin.Host: {Mirrors: []string{tc.mirror}}}})
		e := engine(t, sandboxed)
		asked.Store(false)
		var logs strings.Builder
		plan := enginetest.NewPlan(base, origin.Host+"/team/image", name, "RUN true")
		if _, err := e.Run(t.Context(), plan, &logs); err != nil {
			t.Errorf("%s: %v\n%s", name, err, logs.String())
		}
		if asked.Load() != tc.origin {
			t.Errorf("%s: the registry itself was asked: %t", name, asked.Load())
		}
		// A miss of the mirror is no reason of what fails later.
		plan = enginetest.NewPlan(base, origin.Host+"/team/image", name+" fails", "RUN exit 3")
		if _, err := e.Run(t.Context(), plan, io.Discard); builder.KindOf(err) != builder.KindCommandFailed {
			t.Errorf("%s: a failing command is %v (%s)", name, err, builder.KindOf(err))
		}
	}
}
