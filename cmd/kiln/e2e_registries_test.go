//go:build e2e || kube

package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd" // how the registries below know their users
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory" // where they keep images
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/sirupsen/logrus"
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

// newPrivateRegistry starts one at an address of this machine. It ends with the test.
func newPrivateRegistry(t *testing.T, ca *enginetest.Authority, ip, user, password string) privateRegistry {
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
	// The library knows no other logger.
	logrus.SetLevel(logrus.PanicLevel)
	app := handlers.NewApp(context.WithoutCancel(t.Context()), config)
	t.Cleanup(func() { _ = app.Shutdown() })
	s := enginetest.NewTLSServer(t, ca, app, ip)
	p := privateRegistry{host: s.Listener.Addr().String(), user: user, password: password, ca: ca}
	p.options = []remote.Option{remote.WithAuth(&authn.Basic{Username: user, Password: password}), remote.WithTransport(ca.Transport(t))}
	return p
}

func (p privateRegistry) login() string {
	return fmt.Sprintf("%q:{%q:%q}", p.host, "auth", base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password)))
}
