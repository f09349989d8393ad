// Package natstest starts NATS servers with the configuration of deploy/nats, for tests.
package natstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"

	"kiln/events/natsbus"
)

// Password is that of every user: kiln-worker, kiln-client and so on, one per role.
const Password = "a password of the test"

// Start starts a server at an address of this machine, with TLS and a user per role, and
// returns its URL. It ends with the test. The certificate and its key are files.
func Start(tb testing.TB, ip, certificate, key string) (url string) {
	tb.Helper()
	dir := tb.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
	if err != nil {
		tb.Fatal(err)
	}
	passwords := fmt.Appendf(nil, "ADMIN_PASSWORD: %q\n", hash)
	for _, role := range natsbus.Roles() {
		passwords = fmt.Appendf(passwords, "%s_PASSWORD: %q\n", natsbus.RoleVariable(role), hash)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	write("passwords.conf", string(passwords))
	write(natsbus.RolesFile, read(tb, natsbus.RolesFile))
	// Only where the server lives is another place.
	conf := write("nats-server.conf", strings.NewReplacer(
		"/etc/nats/tls/server.pem", certificate, "/etc/nats/tls/server.key", key, "/etc/nats", dir, "/data", dir,
		`listen: "0.0.0.0:4222"`, fmt.Sprintf("listen: %q", ip+":-1"), "127.0.0.1:8222", "127.0.0.1:-1",
	).Replace(read(tb, "nats-server.conf")))
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		tb.Fatal(err)
	}
	opts.NoLog, opts.NoSigs = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		tb.Fatal(err)
	}
	s.Start()
	tb.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		tb.Fatal("the server does not start")
	}
	return s.ClientURL()
}

// read returns a file of deploy/nats.
func read(tb testing.TB, name string) string {
	tb.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		raw, missing := os.ReadFile(filepath.Join(dir, "deploy", "nats", name)) //nolint:gosec // of this repository
		if missing == nil {
			return string(raw)
		}
		dir = filepath.Dir(dir)
	}
	tb.Fatalf("no deploy/nats/%s above the test", name)
	return ""
}
