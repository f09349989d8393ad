package builder

import (
	"encoding/base64"
	"slices"
)

// Access is what it takes to use one image registry. The zero value but for Host is an
// anonymous user and TLS with the certificates that the system trusts.
type Access struct {
	// Host is the registry as it stands in references: host or host:port, and
	// index.docker.io for Docker Hub.
	Host string
	// Insecure allows plain HTTP.
	Insecure bool
	// SkipTLSVerify takes any certificate of the registry.
	SkipTLSVerify bool
	// CA holds certificates in PEM form that the registry's is checked with, beside
	// those that the system trusts.
	CA []byte
	// ClientCert and ClientKey, in PEM form, are what the registry knows its client by.
	// Both or none are set.
	ClientCert, ClientKey []byte
	// Mirrors, as host[/path], are read from before the registry itself.
	Mirrors []string
	// Login is what the registry knows its user by.
	Login Login
}

// Login is a user's credentials at a registry; the zero value is an anonymous user.
type Login struct {
	Username, Password string
	// IdentityToken is exchanged for access tokens, RegistryToken is one.
	IdentityToken, RegistryToken string
}

// Basic returns the login as a basic authorization header has it, "" without a user.
func (l Login) Basic() string {
	if l.Username == "" {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(l.Username + ":" + l.Password))
}

// SecretValues returns every value of the login that must not be shown.
func (l Login) SecretValues() []string {
	values := []string{l.Password, l.IdentityToken, l.RegistryToken}
	if l.Password != "" {
		values = append(values, l.Basic())
	}
	return slices.DeleteFunc(values, func(s string) bool { return s == "" })
}
