// Package registry implements builder.Registry with go-containerregistry: it
// resolves references to digests, verifies, tags and copies images, and knows by
// which credentials, certificates and mirrors each registry is reached. It speaks
// plain HTTP to loopback and to the hosts that the configuration names, and to
// nobody else.
package registry

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Config of a Registry. The zero value is usable; every field says its default.
type Config struct {
	// DockerConfig is the path of a docker config.json with credentials (auths,
	// credHelpers, credsStore). Defaults to where Docker and Podman keep theirs.
	DockerConfig string
	// Secrets knows credentials by name. Nil: whoever names some is refused.
	Secrets SecretStore
	// Clouds are the providers whose registries are reached with the credentials that
	// this process gets from its surroundings (environment, files, metadata service),
	// where nothing else is configured for them: "ecr", "gar" and "acr". Defaults to none.
	Clouds []string
	// CA is a file of certificates in PEM form that every registry's is checked with,
	// beside those that the system trusts. Files are read anew when they are needed.
	CA string
	// Hosts says how single registries are reached, by host or host:port. "docker.io"
	// is Docker Hub.
	Hosts map[string]Host
	// Insecure lists hosts, as they stand in references (host or host:port), that may
	// be spoken to by plain HTTP. Loopback addresses always may, unless Hosts names
	// certificates for them.
	Insecure []string
	// Timeout bounds one operation, its retries included. Defaults to 1 min.
	Timeout time.Duration
	// CopyTimeout bounds the copy of an image to another repository. Defaults to
	// 30 min.
	CopyTimeout time.Duration
}

// Host says how one registry is reached. The zero value is TLS with the certificates
// that the system trusts, and Config.CA.
type Host struct {
	// CA is a file of certificates in PEM form that the registry's is checked with, too.
	CA string
	// Cert and Key are files, in PEM form, with what the registry knows its client by.
	Cert, Key string
	// Insecure allows plain HTTP.
	Insecure bool
	// SkipTLSVerify takes any certificate of this registry: whoever is between may read
	// and change everything. Prefer CA.
	SkipTLSVerify bool
	// Mirrors, as host[/path], are read from in this order before the registry itself,
	// which is asked when none of them has an image. Mirrors are not written to.
	Mirrors []string
}

// IsInsecure reports whether host (host or host:port) may be spoken to by plain
// HTTP: it is configured so, or is localhost, in 127.0.0.0/8, or ::1 and no TLS is
// configured for it.
func (c Config) IsInsecure(host string) bool {
	host = strings.ToLower(host)
	if slices.ContainsFunc(c.Insecure, func(listed string) bool { return strings.EqualFold(listed, host) }) {
		return true
	}
	if h, _ := c.host(host); h.Insecure || h.CA != "" || h.Cert != "" || h.SkipTLSVerify {
		return h.Insecure
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
		return ip.IsLoopback()
	}
	return name == "localhost"
}

// host returns the settings of a host as it stands in references, if there are any.
func (c Config) host(host string) (Host, bool) {
	for listed, h := range c.Hosts {
		if strings.EqualFold(canonical(listed), canonical(host)) {
			return h, true
		}
	}
	return Host{}, false
}

// canonical gives Docker Hub the one name that it has in references.
func canonical(host string) string {
	if strings.EqualFold(host, "docker.io") {
		return hub
	}
	return host
}

// hub is Docker Hub's host.
const hub = "index.docker.io"

func (c Config) withDefaults() Config {
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.CopyTimeout == 0 {
		c.CopyTimeout = 30 * time.Minute
	}
	return c
}

var (
	hostPattern = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?$`)
	// mirrorPath has no dot or colon in its first part, which the executor would take
	// for a host.
	mirrorPath = regexp.MustCompile(`^[a-z0-9]+(?:(?:_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
)

func (c Config) validate() error {
	var faults []error
	for _, host := range c.Insecure {
		if !hostPattern.MatchString(host) {
			faults = append(faults, fmt.Errorf("insecure registry %q must be host or host:port, without scheme and path", host))
		}
	}
	for _, cloud := range c.Clouds {
		if !slices.Contains([]string{cloudECR, cloudGAR, cloudACR}, cloud) {
			faults = append(faults, fmt.Errorf("cloud %q must be %s, %s or %s", cloud, cloudECR, cloudGAR, cloudACR))
		}
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.Hosts)) {
		key := strings.ToLower(canonical(name))
		if seen[key] {
			faults = append(faults, fmt.Errorf("registry host %q is there twice", key))
		}
		seen[key] = true
		if err := c.Hosts[name].validate(name); err != nil {
			faults = append(faults, fmt.Errorf("registry host %q: %w", name, err))
		}
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout %s is negative", c.Timeout))
	}
	if c.CopyTimeout < 0 {
		faults = append(faults, fmt.Errorf("copy timeout %s is negative", c.CopyTimeout))
	}
	return errors.Join(faults...)
}

func (h Host) validate(name string) error {
	var faults []error
	if !hostPattern.MatchString(name) {
		faults = append(faults, errors.New("it must be host or host:port, without scheme and path"))
	}
	if (h.Cert == "") != (h.Key == "") {
		faults = append(faults, errors.New("a client certificate needs both cert and key"))
	}
	if h.Insecure && (h.CA != "" || h.Cert != "" || h.SkipTLSVerify) {
		faults = append(faults, errors.New("insecure allows plain HTTP: it goes with none of ca, cert, key and skip_tls_verify"))
	}
	if h.SkipTLSVerify && h.CA != "" {
		faults = append(faults, errors.New("with skip_tls_verify nothing is checked with the ca"))
	}
	for _, text := range h.Mirrors {
		m := parseMirror(text)
		switch {
		case !hostPattern.MatchString(m.host) || m.path != "" && !mirrorPath.MatchString(m.path):
			faults = append(faults, fmt.Errorf("mirror %q must be host[:port][/path], without scheme, and the path's first part without a dot", text))
		case strings.EqualFold(canonical(m.host), canonical(name)) && m.path == "":
			faults = append(faults, fmt.Errorf("mirror %q is the registry itself", text))
		}
	}
	return errors.Join(faults...)
}

// mirror is where images of another registry can be read too.
type mirror struct{ host, path string }

func parseMirror(text string) mirror {
	host, path, _ := strings.Cut(strings.TrimSuffix(text, "/"), "/")
	return mirror{host: host, path: path}
}
