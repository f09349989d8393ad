package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// network decides which hosts and addresses are spoken to, and how. Safe for
// concurrent use.
type network struct {
	insecure  []string
	allowed   []netip.Prefix
	refused   []netip.Prefix
	dialer    net.Dialer
	transport *http.Transport
}

// refusedNetworks are link-local addresses and those of clouds' metadata services,
// which give credentials to whoever can reach them.
func refusedNetworks() []netip.Prefix {
	texts := []string{"169.254.0.0/16", "fe80::/10", "100.100.100.200/32", "192.0.0.192/32", "fd00:ec2::254/128"}
	prefixes := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		prefixes[i] = netip.MustParsePrefix(text)
	}
	return prefixes
}

func newNetwork(cfg Config) (*network, error) {
	n := &network{insecure: cfg.Insecure, allowed: cfg.AllowAddresses, refused: refusedNetworks()}
	n.dialer = net.Dialer{Timeout: 15 * time.Second, Control: n.control}
	base, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, fmt.Errorf("the default transport is a %T", http.DefaultTransport)
	}
	n.transport = base.Clone()
	n.transport.DialContext = n.dialer.DialContext
	n.transport.ResponseHeaderTimeout = time.Minute
	// Bytes have to arrive as they are: they are what a version is the digest of.
	n.transport.DisableCompression = true
	if cfg.CA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("read the system's certificates: %w", err)
		}
		pool.AppendCertsFromPEM([]byte(cfg.CA))
		n.transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return n, nil
}

// control sees the address of every connection after its name was resolved, so that a
// name cannot hide one.
func (n *network) control(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address %s: %w", address, err)
	}
	return n.checkAddress(addr.Addr())
}

func (n *network) checkAddress(addr netip.Addr) error {
	addr = embedded(addr.Unmap().WithZone(""))
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	if slices.ContainsFunc(n.refused, contains) && !slices.ContainsFunc(n.allowed, contains) {
		return invalid("the source is at the address %s, which is link-local or a metadata service; the operator can allow it (source.allow_addresses)", addr)
	}
	return nil
}

// embedded returns the IPv4 address that a NAT64 gateway (RFC 6052) would contact.
func embedded(addr netip.Addr) netip.Addr {
	if !netip.MustParsePrefix("64:ff9b::/96").Contains(addr) {
		return addr
	}
	raw := addr.As16()
	return netip.AddrFrom4([4]byte(raw[12:]))
}

// plain reports whether host (host or host:port) may be spoken to without encryption.
func (n *network) plain(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	if slices.ContainsFunc(n.insecure, func(listed string) bool {
		return listed == "*" || strings.EqualFold(listed, host) || strings.EqualFold(listed, name)
	}) {
		return true
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.IsLoopback()
	}
	return strings.EqualFold(name, "localhost")
}

// check refuses plain HTTP where it is not configured, and addresses that a proxy
// would otherwise contact for us.
func (n *network) check(u *url.URL) error {
	switch {
	case u.Scheme == "https":
	case u.Scheme != "http":
		return invalid("the source leads to a %.40s:// URL", u.Scheme)
	case !n.plain(u.Host):
		return invalid("plain HTTP to %s is refused, since anybody on the way could change the code; use https, or have the operator list the host (source.insecure)", u.Host)
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		return n.checkAddress(addr)
	}
	return nil
}

// RoundTrip implements http.RoundTripper.
func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := n.check(r.URL); err != nil {
		return nil, err
	}
	return n.transport.RoundTrip(r)
}

// dial connects to a server that does not speak HTTP.
func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.dialer.DialContext(ctx, network, address)
}

// maxRedirects is how many redirects are followed.
const maxRedirects = 5

// client returns an HTTP client whose requests to the origin, scheme and host, and to
// nobody else are authorized. Authorize may be nil.
func (n *network) client(origin *url.URL, authorize func(*http.Request)) *http.Client {
	return &http.Client{Transport: authorized{n, origin, authorize}, CheckRedirect: checkRedirect}
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	// It would hold the query of the URL before, which may be a signature.
	r.Header.Del("Referer")
	switch {
	case len(via) > maxRedirects:
		return notFound("the server redirects more than %d times", maxRedirects)
	case via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https":
		return notFound("the server redirects from HTTPS to %.40s://%s", r.URL.Scheme, r.URL.Host)
	default:
		return nil
	}
}

// authorized adds credentials to requests to their own host only, whatever redirects
// say.
type authorized struct {
	next      http.RoundTripper
	origin    *url.URL
	authorize func(*http.Request)
}

// RoundTrip implements http.RoundTripper.
func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.authorize != nil && r.URL.Scheme == a.origin.Scheme && r.URL.Host == a.origin.Host {
		r = r.Clone(r.Context())
		a.authorize(r)
	}
	return a.next.RoundTrip(r)
}
