//go:build e2e

package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd" // how the registries below know their users
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // where they keep images
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"

	"kiln/builder/enginetest"
)

// privateRegistry is distribution's registry behind TLS, with one user in a htpasswd
// file.
type privateRegistry struct {
	host, user, password string
	ca                   *enginetest.Authority
	options              []remote.Option
}

func newPrivateRegistry(t *testing.T, user, password string) privateRegistry {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(users, []byte(user+":"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := &configuration.Configuration{
		Storage: configuration.Storage{"inmemory": nil},
		Auth:    configuration.Auth{"htpasswd": configuration.Parameters{"realm": "private", "path": users}},
	}
	config.Catalog.MaxEntries = 1000
	app := handlers.NewApp(context.WithoutCancel(t.Context()), config)
	t.Cleanup(func() { _ = app.Shutdown() })
	ca := enginetest.NewAuthority(t)
	s := enginetest.NewTLSServer(t, ca, app, "127.0.0.1")
	p := privateRegistry{host: s.Listener.Addr().String(), user: user, password: password, ca: ca}
	p.options = []remote.Option{remote.WithAuth(&authn.Basic{Username: user, Password: password}), remote.WithTransport(ca.Transport(t))}
	return p
}

func (p privateRegistry) login() string {
	return fmt.Sprintf("%q:{%q:%q}", p.host, "auth", base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password)))
}

func TestPrivateRegistriesWithHtpasswdAndTLSOnBothSides(t *testing.T) {
	from, to := newPrivateRegistry(t, "reader", "e2e-read-password"), newPrivateRegistry(t, "writer", "e2e-write-password")
	base := enginetest.PushBase(t, from.host+"/team/base", from.options...).Ref
	dir := t.TempDir()
	dockerConfig := filepath.Join(dir, "docker.json")
	if err := os.WriteFile(dockerConfig, []byte(`{"auths":{`+from.login()+","+to.login()+`}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k := up(t, filepath.Join(dir, "data"), "KILN_REGISTRY_DOCKER_CONFIG="+dockerConfig,
		fmt.Sprintf("KILN_REGISTRY_HOSTS={%q: {ca: %s}, %q: {ca: %s}}", from.host, from.ca.File, to.host, to.ca.File))
	js := k.js(t)
	if _, err := js.Publish(t.Context(), "build.requested", pushingTo(t, "private", base, to.host), jetstreamID("private")...); err != nil {
		t.Fatal(err)
	}
	all := terminals(t, js, "private", time.Minute)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %s, want one build.completed", all[0].Data)
	}
	ref, err := name.ParseReference(to.host + "/team/private:1")
	if err != nil {
		t.Fatal(err)
	}
	if desc, err := remote.Head(ref, to.options...); err != nil || desc.Digest.String() != all[0].field(t, "digest") {
		t.Errorf("the registry has %v (%v)", desc, err)
	}
	for _, e := range history(t, js) {
		for _, p := range []privateRegistry{from, to} {
			if text := string(e.Data); strings.Contains(text, p.password) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))) {
				t.Errorf("%s shows a password: %s", e.subject, text)
			}
		}
	}
	if strings.Contains(k.out.String(), "e2e-read") || strings.Contains(k.out.String(), "e2e-write") {
		t.Errorf("the log shows a password: %s", k.out)
	}
}
