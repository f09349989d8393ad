package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"kiln/builder"
)

// reach returns how a host is reached, without its login.
func (r *Registry) reach(host string) (builder.Access, error) {
	h, _ := r.cfg.host(host)
	a := builder.Access{
		Host: host, Insecure: r.cfg.IsInsecure(host), SkipTLSVerify: h.SkipTLSVerify, Mirrors: slices.Clone(h.Mirrors),
	}
	for _, file := range []string{r.cfg.CA, h.CA} {
		if file == "" || h.SkipTLSVerify {
			continue
		}
		ca, err := readCA(file)
		if err != nil {
			return a, err
		}
		a.CA = append(a.CA, ca...)
	}
	if h.Cert == "" {
		return a, nil
	}
	var err error
	if a.ClientCert, err = readFile("client certificate", h.Cert); err != nil {
		return a, err
	}
	a.ClientKey, err = readFile("key of the client certificate", h.Key)
	return a, err
}

// Reach is Access without login and without asking anybody.
func (r *Registry) Reach(host string) (builder.Access, error) {
	access, err := r.reach(host)
	if err != nil {
		return access, r.fail(builder.KindUnavailable, "reading settings of registry "+host, err)
	}
	return access, nil
}

func readFile(what, name string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	// So that another file may follow.
	return append(raw, '\n'), nil
}

func readCA(name string) ([]byte, error) {
	raw, err := readFile("CA certificates", name)
	if err == nil && !x509.NewCertPool().AppendCertsFromPEM(raw) {
		err = fmt.Errorf("%s holds no certificate in PEM form", name)
	}
	return raw, err
}

// tlsConfig returns the TLS configuration for a registry.
func tlsConfig(a builder.Access) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: a.SkipTLSVerify} //nolint:gosec // the operator asks for it
	if len(a.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pool.AppendCertsFromPEM(a.CA)
		cfg.RootCAs = pool
	}
	if len(a.ClientCert) > 0 {
		pair, err := tls.X509KeyPair(a.ClientCert, a.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// hostTransport makes the requests of one registry's session. Where the registry sends its
// client elsewhere, for a token or a blob, what is configured for that host counts, and
// the registry's own CA: a client certificate is shown to nobody else.
type hostTransport struct {
	registry *Registry
	own      builder.Access

	mu     sync.Mutex
	byHost map[string]*http.Transport
}

func (r *Registry) newTransport(host string) (*hostTransport, error) {
	own, err := r.reach(host)
	if err != nil {
		return nil, err
	}
	return &hostTransport{registry: r, own: own, byHost: map[string]*http.Transport{}}, nil
}

// RoundTrip implements http.RoundTripper. It refuses plain HTTP to hosts that are not
// configured for it: the library tries it by itself for private networks (RFC 1918)
// and some names, and follows redirects to it.
func (t *hostTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.registry.cfg.IsInsecure(req.URL.Host) {
		return nil, fmt.Errorf("refusing plain HTTP to %s: it is not configured as an insecure registry", req.URL.Host)
	}
	next, err := t.to(req.URL.Host)
	if err != nil {
		return nil, err
	}
	return next.RoundTrip(req)
}

// to returns the transport to a host. All hosts that nothing is configured for share
// one.
func (t *hostTransport) to(host string) (*http.Transport, error) {
	host = strings.ToLower(host)
	foreign := host != strings.ToLower(t.own.Host)
	if _, configured := t.registry.cfg.host(host); foreign && !configured {
		host = ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if next, ok := t.byHost[host]; ok {
		return next, nil
	}
	access := t.own
	if foreign {
		var err error
		if access, err = t.registry.reach(host); err != nil {
			return nil, err
		}
		if !access.SkipTLSVerify {
			access.CA = slices.Concat(access.CA, t.own.CA)
		}
	}
	cfg, err := tlsConfig(access)
	if err != nil {
		return nil, err
	}
	next := t.registry.transport.Clone()
	next.TLSClientConfig = cfg
	t.byHost[host] = next
	return next, nil
}

func (t *hostTransport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, next := range t.byHost {
		next.CloseIdleConnections()
	}
}
