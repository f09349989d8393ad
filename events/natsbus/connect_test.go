package natsbus_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"kiln/events/natsbus"
)

// listening runs a server on a port of this machine.
func listening(t *testing.T, change func(*server.Options)) string {
	t.Helper()
	s := startServer(t, func(o *server.Options) {
		o.DontListen, o.JetStream, o.Host, o.Port = false, false, "127.0.0.1", server.RANDOM_PORT
		change(o)
	})
	return s.ClientURL()
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// must saves the error branch where a fault means that the test itself is wrong.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestEveryWayToLogIn(t *testing.T) {
	t.Parallel()
	user := must(nkeys.CreateUser())
	authority := newAuthority(t)
	serverCert := authority.issue(t, "127.0.0.1")
	clientCert := authority.issue(t, "worker")
	withOperator, credentials := operator(t)
	for name, tc := range map[string]struct {
		server func(*server.Options)
		config natsbus.Config
		// wrong changes a good configuration into one that is refused; advice is what
		// the error then says.
		wrong  func(*natsbus.Config)
		advice string
	}{
		"user and password": {
			server: func(o *server.Options) { o.Username, o.Password = "kiln", "secret" },
			config: natsbus.Config{User: "kiln", Password: "secret"},
			wrong:  func(c *natsbus.Config) { c.Password = "guess" }, advice: "refuses the login",
		},
		"nkey": {
			server: func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: must(user.PublicKey())}} },
			config: natsbus.Config{NKeyFile: file(t, must(user.Seed()))},
			wrong:  func(c *natsbus.Config) { c.NKeyFile = file(t, must(must(nkeys.CreateUser()).Seed())) }, advice: "refuses the login",
		},
		"credentials file": {
			server: withOperator, config: natsbus.Config{CredentialsFile: credentials},
			wrong: func(c *natsbus.Config) { c.CredentialsFile = "" }, advice: "refuses the login",
		},
		"TLS with client certificate": {
			server: func(o *server.Options) {
				o.TLS, o.TLSVerify, o.TLSTimeout = true, true, 5
				o.TLSConfig = &tls.Config{
					MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{must(tls.X509KeyPair(serverCert.cert, serverCert.key))},
					ClientCAs: authority.pool(), ClientAuth: tls.RequireAndVerifyClientCert,
				}
			},
			config: natsbus.Config{CAFile: file(t, authority.pem), CertFile: file(t, clientCert.cert), KeyFile: file(t, clientCert.key)},
			wrong:  func(c *natsbus.Config) { c.CAFile = "" }, advice: "name the file of the CA",
		},
		"plain": {
			server: func(*server.Options) {},
			wrong:  func(c *natsbus.Config) { c.CAFile = file(t, authority.pem) }, advice: "does not speak TLS",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tc.config
			c.URL = listening(t, tc.server)
			nc, err := natsbus.Connect(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := nc.RTT(); err != nil {
				t.Error(err)
			}
			nc.Close()
			tc.wrong(&c)
			if nc, err := natsbus.Connect(c); err == nil || !strings.Contains(err.Error(), tc.advice) {
				t.Errorf("Connect(wrong) = %v, %v; want an error with %q", nc, err, tc.advice)
			}
		})
	}
}

func TestImpossibleConfigurationsAreRefusedBeforeConnecting(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config natsbus.Config
		text   string
	}{
		"two logins":           {natsbus.Config{User: "u", NKeyFile: "f"}, "choose one"},
		"password only":        {natsbus.Config{Password: "p"}, "without a user"},
		"certificate only":     {natsbus.Config{CertFile: "f"}, "both its certificate and its key"},
		"missing credentials":  {natsbus.Config{CredentialsFile: "/no/such/file", Retry: true}, "/no/such/file"},
		"missing nkey":         {natsbus.Config{NKeyFile: "/no/such/file", Retry: true}, "/no/such/file"},
		"missing CA":           {natsbus.Config{CAFile: "/no/such/file", Retry: true}, "/no/such/file"},
		"nobody listens there": {natsbus.Config{URL: "nats://127.0.0.1:1"}, "check that it runs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if nc, err := natsbus.Connect(tc.config); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Connect() = %v, %v; want an error with %q", nc, err, tc.text)
			}
		})
	}
}

func TestRetryWaitsForAServerThatStartsLater(t *testing.T) {
	t.Parallel()
	r := newRestartable(t)
	r.down()
	nc, err := natsbus.Connect(natsbus.Config{URL: r.url(), Retry: true, Options: []nats.Option{nats.ReconnectWait(20 * time.Millisecond)}})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := natsbus.Ready(short, nc); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ready() without a server = %v", err)
	}
	r.up()
	if err := natsbus.Ready(t.Context(), nc); err != nil {
		t.Errorf("Ready() = %v", err)
	}
	nc.Close()
	if err := natsbus.Ready(t.Context(), nc); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Ready() after Close = %v", err)
	}
}

func TestLossAndReturnOfTheServerAreLoggedAndAnOwnCloseIsNot(t *testing.T) {
	t.Parallel()
	r := newRestartable(t)
	log := &lockedBuffer{}
	nc, err := natsbus.Connect(natsbus.Config{
		URL: r.url(), Log: zerolog.New(log).Level(zerolog.InfoLevel), Options: []nats.Option{nats.ReconnectWait(20 * time.Millisecond)},
	})
	if err != nil {
		t.Fatal(err)
	}
	lost := nc.StatusChanged(nats.RECONNECTING)
	r.down()
	<-lost
	r.up()
	if err := natsbus.Ready(t.Context(), nc); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for !strings.Contains(log.String(), "restored") && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	closed := nc.StatusChanged(nats.CLOSED)
	nc.Close()
	<-closed
	if got := log.String(); strings.Count(got, "lost") != 1 || strings.Count(got, "restored") != 1 {
		t.Errorf("log =\n%s", got)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// operator returns what makes a server trust an operator of its own, and the
// credentials of one user.
func operator(t *testing.T) (func(*server.Options), string) {
	t.Helper()
	op, sys, acc, user := must(nkeys.CreateOperator()), must(nkeys.CreateAccount()), must(nkeys.CreateAccount()), must(nkeys.CreateUser())
	public := func(k nkeys.KeyPair) string { return must(k.PublicKey()) }
	opClaims := jwt.NewOperatorClaims(public(op))
	opClaims.SystemAccount = public(sys)
	opJWT := must(opClaims.Encode(op))
	resolver := &server.MemAccResolver{}
	for _, account := range []nkeys.KeyPair{sys, acc} {
		if err := resolver.Store(public(account), must(jwt.NewAccountClaims(public(account)).Encode(op))); err != nil {
			t.Fatal(err)
		}
	}
	userJWT := must(jwt.NewUserClaims(public(user)).Encode(acc))
	credentials := file(t, must(jwt.FormatUserConfig(userJWT, must(user.Seed()))))
	return func(o *server.Options) {
		o.TrustedOperators = []*jwt.OperatorClaims{must(jwt.DecodeOperatorClaims(opJWT))}
		o.SystemAccount, o.AccountResolver = public(sys), resolver
	}, credentials
}

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

type issued struct{ cert, key []byte }

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return authority{cert: must(x509.ParseCertificate(der)), key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a authority) issue(t *testing.T, name string) issued {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	return issued{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))}),
	}
}
