// Package registry implements builder.Registry with go-containerregistry: it
// resolves references to digests, verifies, tags and copies images. It speaks plain
// HTTP to loopback and to the hosts that the configuration names, and to nobody else.
package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Config of a Registry. The zero value is usable; every field says its default.
type Config struct {
	// DockerConfig is the path of a docker config.json with credentials. Defaults to
	// Docker's own search ($DOCKER_CONFIG, ~/.docker).
	DockerConfig string
	// Insecure lists hosts (host or host:port) that are spoken to by plain HTTP.
	// Loopback addresses always are.
	Insecure []string
	// Timeout bounds one operation. Defaults to 1 min.
	Timeout time.Duration
}

// IsInsecure reports whether host (host or host:port) is spoken to by plain HTTP.
func (c Config) IsInsecure(host string) bool {
	if slices.Contains(c.Insecure, host) {
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

func (c Config) validate() error {
	var faults []error
	for _, host := range c.Insecure {
		if host == "" || strings.Contains(host, "/") {
			faults = append(faults, fmt.Errorf("insecure registry %q must be host or host:port, without scheme and path", host))
		}
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout %s is negative", c.Timeout))
	}
	return errors.Join(faults...)
}

// dockerConfig is the part of config.json that holds credentials.
type dockerConfig struct {
	Auths       map[string]authn.AuthConfig `json:"auths"`
	CredsStore  string                      `json:"credsStore"`
	CredHelpers map[string]string           `json:"credHelpers"`
}

// readDockerConfig checks the file at path and returns the secrets in it.
func readDockerConfig(path string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read docker config: %w", err)
	}
	var cfg dockerConfig
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, fmt.Errorf("docker config %s is not valid: %w", path, err)
	}
	var secrets []string
	for _, auth := range cfg.Auths {
		secrets = append(secrets, auth.Password, auth.IdentityToken, auth.RegistryToken, auth.Auth)
		if plain, err := base64.StdEncoding.DecodeString(auth.Auth); err == nil {
			_, password, _ := strings.Cut(string(plain), ":")
			secrets = append(secrets, password)
		}
	}
	return slices.DeleteFunc(secrets, func(s string) bool { return s == "" }), nil
}
