// Package registry implements builder.Registry with go-containerregistry: it
// resolves references to digests, verifies, tags and copies images. It speaks plain
// HTTP to loopback and to the hosts that the configuration names, and to nobody else.
package registry

import (
	"errors"
	"fmt"
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
	// Insecure lists hosts, as they stand in references (host or host:port), that may
	// be spoken to by plain HTTP. Loopback addresses always may.
	Insecure []string
	// Timeout bounds one operation, its retries included. Defaults to 1 min.
	Timeout time.Duration
	// CopyTimeout bounds the copy of an image to another repository. Defaults to
	// 30 min.
	CopyTimeout time.Duration
}

// IsInsecure reports whether host (host or host:port) may be spoken to by plain
// HTTP: it is listed in Insecure, or is localhost, in 127.0.0.0/8, or ::1.
func (c Config) IsInsecure(host string) bool {
	host = strings.ToLower(host)
	if slices.ContainsFunc(c.Insecure, func(listed string) bool { return strings.EqualFold(listed, host) }) {
		return true
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

func (c Config) withDefaults() Config {
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.CopyTimeout == 0 {
		c.CopyTimeout = 30 * time.Minute
	}
	return c
}

var hostPattern = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?$`)

func (c Config) validate() error {
	var faults []error
	for _, host := range c.Insecure {
		if !hostPattern.MatchString(host) {
			faults = append(faults, fmt.Errorf("insecure registry %q must be host or host:port, without scheme and path", host))
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
