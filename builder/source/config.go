package source

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"kiln/builder/source/archive"
)

// Config of Sources. CacheDir is required; every other field has a default.
type Config struct {
	// CacheDir keeps downloaded archives by their content, and what is being fetched.
	// Several processes may share one.
	CacheDir string
	// CacheSize bounds the archives in CacheDir, in bytes; what was not used for the
	// longest time goes first. Defaults to 10 GiB.
	CacheSize int64
	// Limits bound what is fetched.
	Limits archive.Limits
	// Timeout bounds one Pin or Fetch. Defaults to 15 min.
	Timeout time.Duration
	// Insecure lists hosts (host or host:port) that may be spoken to without
	// encryption, "*" being all; loopback always may. A git:// URL of such a host means
	// plain HTTP, and Git's own protocol where nobody speaks HTTP.
	Insecure []string
	// AllowAddresses lists networks that are contacted although they are link-local or
	// belong to the metadata service of a cloud: 169.254.0.0/16, fe80::/10,
	// 100.100.100.200, 192.0.0.192 and fd00:ec2::254 are refused by default.
	AllowAddresses []netip.Prefix
	// CA holds certificates in PEM form that are trusted beside the system's.
	CA string
	// KnownHosts is a file of SSH host keys, for requests without GIT_SSH_KNOWN_HOSTS.
	KnownHosts string
	// Submodules fetches the submodules of Git repositories too; without it their
	// folders stay empty.
	Submodules bool
	// Ambient lets requests that bring no credentials for s3, gs and az use those of
	// this machine: environment, files, metadata service. Every tenant can then read
	// what the machine can.
	Ambient bool
	// V3IOAPI is the web API, "https://host[:port]", of v3io URLs without a host, for
	// requests without V3IO_API.
	V3IOAPI string
	// Contexts opens what `kiln build` uploaded. Nil: such sources are refused.
	Contexts Contexts
}

// Contexts opens uploaded archives. Implementations are safe for concurrent use.
type Contexts interface {
	// Open returns the archive with that digest ("sha256:<hex>"), which the caller
	// closes. The error matches fs.ErrNotExist when there is none.
	Open(ctx context.Context, digest string) (io.ReadCloser, error)
}

func (c Config) withDefaults() Config {
	if c.CacheSize == 0 {
		c.CacheSize = 10 << 30
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Minute
	}
	c.Limits = c.Limits.WithDefaults()
	return c
}

var hostPattern = regexp.MustCompile(`^(?:\*|(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?)$`)

// validate reports all faults of a configuration with defaults.
func (c Config) validate() error {
	var faults []error
	if c.CacheDir == "" {
		faults = append(faults, errors.New("there is no cache directory"))
	}
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{"cache size", c.CacheSize},
		{"timeout", int64(c.Timeout)},
		{"download limit", c.Limits.Download},
		{"unpacked limit", c.Limits.Unpacked},
		{"entries limit", int64(c.Limits.Entries)},
		{"ratio limit", c.Limits.Ratio},
		{"path limit", int64(c.Limits.Path)},
	} {
		if limit.value < 0 {
			faults = append(faults, fmt.Errorf("%s %d is negative", limit.name, limit.value))
		}
	}
	if c.Limits.Download > c.CacheSize {
		faults = append(faults, fmt.Errorf("download limit %d is larger than the cache of %d bytes", c.Limits.Download, c.CacheSize))
	}
	for _, host := range c.Insecure {
		if !hostPattern.MatchString(host) {
			faults = append(faults, fmt.Errorf("insecure host %.80q must be host or host:port, without scheme and path, or *", host))
		}
	}
	if c.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CA)) {
		faults = append(faults, errors.New("the CA holds no certificate in PEM form"))
	}
	if c.V3IOAPI != "" {
		if u, err := url.Parse(c.V3IOAPI); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
			faults = append(faults, errors.New("the v3io API must be http(s)://host[:port]"))
		}
	}
	return errors.Join(faults...)
}
