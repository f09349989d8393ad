package builder

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"kiln/builder/dockerfile"
	"kiln/builder/lazyregexp"
)

// Pip names the package indexes. URLs may hold credentials; they reach RUN
// instructions as build secrets, never arguments or layers.
type Pip struct {
	// IndexURL replaces https://pypi.org/simple.
	IndexURL string
	// ExtraIndexURLs are asked in addition.
	ExtraIndexURLs []string
	// TrustedHosts may be used without (valid) HTTPS, as host or host:port.
	TrustedHosts []string
	// CA are certificates in PEM form that indexes are checked with, in place of those
	// that pip brings.
	CA string
}

// IDs of the build secrets that carry pip's settings: the environment variables
// that pip reads them from.
const (
	pipIndexURLID      = "PIP_INDEX_URL"
	pipExtraIndexURLID = "PIP_EXTRA_INDEX_URL"
	pipTrustedHostID   = "PIP_TRUSTED_HOST"
	pipCertID          = "PIP_CERT"
)

var (
	trustedHost = lazyregexp.New(`^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$`)
	// userInfo finds credentials in URLs. The authority of a URL ends at the first of
	// "/?#", so that whatever stands before its last "@" is user info.
	userInfo = lazyregexp.New(`([A-Za-z][A-Za-z0-9+.-]*://)([^/?#\s"'<>]+)@`)
)

func (p Pip) validate() error {
	var faults []error
	if p.IndexURL != "" {
		faults = append(faults, checkIndexURL("index URL", p.IndexURL))
	}
	for i, text := range p.ExtraIndexURLs {
		faults = append(faults, checkIndexURL(fmt.Sprintf("extra index URL %d", i+1), text))
	}
	for _, host := range p.TrustedHosts {
		if !trustedHost.MatchString(host) {
			faults = append(faults, fmt.Errorf("pip trusted host %q is not host or host:port", host))
		}
	}
	if p.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(p.CA)) {
		faults = append(faults, errors.New("pip CA holds no certificate in PEM form"))
	}
	return errors.Join(faults...)
}

// checkIndexURL does not repeat the text, which may hold a password.
func checkIndexURL(name, text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return fmt.Errorf("pip %s contains white space or control characters", name)
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return fmt.Errorf("pip %s is not an http or https URL with a host", name)
	}
	return nil
}

// secrets returns pip's settings as build secrets, named as the environment
// variables that pip reads. Credentials may be rotated without a new build: the
// version of a setting is a hash of it without user info.
func (p Pip) secrets() []Secret {
	var all []Secret
	add := func(id string, values ...string) {
		value := strings.Join(values, " ")
		if value == "" {
			return
		}
		shown := withoutUserInfo(value)
		all = append(all, Secret{ID: id, Value: value, Version: hash(shown), Public: shown == value})
	}
	add(pipIndexURLID, p.IndexURL)
	add(pipExtraIndexURLID, p.ExtraIndexURLs...)
	add(pipTrustedHostID, p.TrustedHosts...)
	if p.CA != "" {
		add(pipCertID, dockerfile.PipCAPath)
	}
	return all
}

// withoutUserInfo cuts credentials out of URLs.
func withoutUserInfo(text string) string { return userInfo.ReplaceAllString(text, "$1") }

// longName is the length from which a user name in a URL is taken for a token, as
// in https://<token>:x-oauth-basic@host.
const longName = 16

// credentials returns what must not be shown of a text with URLs: each URL with
// user info, its user info, its password and, when it looks like a token, its user
// name, the last two also unescaped.
func credentials(text string) []string {
	var all []string
	for word := range strings.FieldsSeq(text) {
		for _, m := range userInfo.FindAllStringSubmatch(word, -1) {
			name, password, _ := strings.Cut(m[2], ":")
			all = append(all, word, m[2], password)
			if password == "" || len(name) >= longName {
				all = append(all, name)
			}
		}
	}
	for _, escaped := range slices.Clone(all) {
		if plain, err := url.PathUnescape(escaped); err == nil && plain != escaped {
			all = append(all, plain)
		}
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}
