package enginetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Authority is a certificate authority that nobody trusts by itself.
type Authority struct {
	// File is the path of its certificate in PEM form.
	File string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: tb.Name()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return &Authority{File: pemFile(tb, "ca.crt", "CERTIFICATE", raw), cert: cert, key: key}
}

// Issue makes a certificate for hosts, which are names and addresses, or for a client
// without any. It returns the paths of certificate and key in PEM form.
func (a *Authority) Issue(tb testing.TB, hosts ...string) (certFile, keyFile string) {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "kiln test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pemFile(tb, "cert.pem", "CERTIFICATE", raw), pemFile(tb, "key.pem", "PRIVATE KEY", encoded)
}

// Transport returns an HTTP transport that trusts the authority and nobody else, and
// has the client certificate, if any, of the files that Issue returned. It ends with
// the test.
func (a *Authority) Transport(tb testing.TB, certAndKey ...string) *http.Transport {
	tb.Helper()
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	cfg.RootCAs.AddCert(a.cert)
	if len(certAndKey) == 2 {
		pair, err := tls.LoadX509KeyPair(certAndKey[0], certAndKey[1])
		if err != nil {
			tb.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	t := &http.Transport{TLSClientConfig: cfg}
	tb.Cleanup(t.CloseIdleConnections)
	return t
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func pemFile(tb testing.TB, name, kind string, raw []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Guard says what a secure registry asks of its clients.
type Guard struct {
	// User and Password are asked for. Empty: nobody is asked.
	User, Password string
	// Token has them checked by a token service, which hands out tokens for an hour,
	// instead of by the registry itself.
	Token bool
	// ClientCert refuses clients without a certificate of the authority; AskClientCert
	// asks for one only.
	ClientCert, AskClientCert bool
}

// NewSecureRegistry starts a registry behind TLS, with a certificate of the authority
// for 127.0.0.1. It ends with the test.
func NewSecureRegistry(tb testing.TB, a *Authority, g Guard) *Registry {
	tb.Helper()
	r := &Registry{}
	door := &guarded{guard: g, next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), tokens: map[string]bool{}}
	srv := newTLSServer(tb, a, g, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if fault := r.faults.Load(); fault != nil && (*fault)(w, req) {
			return
		}
		door.ServeHTTP(w, req)
	}), "127.0.0.1", "localhost")
	r.Host = strings.TrimPrefix(srv.URL, "https://")
	return r
}

// NewTLSServer serves a handler with a certificate of the authority for the hosts, at the
// first of them if that is an address of this machine, else on loopback. It ends with the
// test.
func NewTLSServer(tb testing.TB, a *Authority, h http.Handler, hosts ...string) *httptest.Server {
	tb.Helper()
	return newTLSServer(tb, a, Guard{}, h, hosts...)
}

func newTLSServer(tb testing.TB, a *Authority, g Guard, h http.Handler, hosts ...string) *httptest.Server {
	tb.Helper()
	srv := httptest.NewUnstartedServer(h)
	if net.ParseIP(hosts[0]) != nil {
		listenAt(tb, srv, hosts[0])
	}
	certFile, keyFile := a.Issue(tb, hosts...)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		tb.Fatal(err)
	}
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, ClientCAs: x509.NewCertPool()}
	srv.TLS.ClientCAs.AddCert(a.cert)
	switch {
	case g.ClientCert:
		srv.TLS.ClientAuth = tls.RequireAndVerifyClientCert
	case g.AskClientCert:
		srv.TLS.ClientAuth = tls.RequestClientCert
	}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	tb.Cleanup(srv.Close)
	return srv
}

// guarded stands before a registry.
type guarded struct {
	guard Guard
	next  http.Handler

	mu     sync.Mutex
	tokens map[string]bool
}

// ServeHTTP implements http.Handler.
func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.guard.User == "" {
		g.next.ServeHTTP(w, r)
		return
	}
	user, password, _ := r.BasicAuth()
	known := user == g.guard.User && password == g.guard.Password
	challenge := `Basic realm="test"`
	switch {
	case g.guard.Token && r.URL.Path == "/token" && known:
		token := rand.Text()
		g.mu.Lock()
		g.tokens[token] = true
		g.mu.Unlock()
		_, _ = fmt.Fprintf(w, `{"token":%q,"expires_in":3600}`, token)
		return
	case g.guard.Token:
		g.mu.Lock()
		known = g.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		g.mu.Unlock()
		// By name, like a service of its own: the executor takes no realm at a private
		// address.
		_, port, _ := net.SplitHostPort(r.Host)
		challenge = `Bearer realm="https://localhost:` + port + `/token",service="test"`
	}
	if !known {
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	g.next.ServeHTTP(w, r)
}
