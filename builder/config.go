package builder

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"time"
	"unicode"
)

// Config of a Builder. The zero value is usable; every field says its default.
type Config struct {
	// Platform of images when the request does not say, as os/arch[/variant].
	// Defaults to linux and this machine's architecture.
	Platform string
	// Timeout of a build when the request does not say. Defaults to 30 min.
	Timeout time.Duration
	// Limits of a build. Zero fields mean the engine's defaults.
	Limits Limits
	// Executor is the build tool. Defaults to the pinned Kaniko with
	// --snapshot-mode=redo.
	Executor Executor
	// Pip is where packages come from. The zero value is pip's own default.
	Pip Pip
}

// Pip names the package indexes. URLs may hold credentials; they reach RUN
// instructions as build secrets, never arguments or layers.
type Pip struct {
	// IndexURL replaces https://pypi.org/simple.
	IndexURL string
	// ExtraIndexURLs are asked in addition.
	ExtraIndexURLs []string
	// TrustedHosts may be used without (valid) HTTPS, as host or host:port.
	TrustedHosts []string
}

var (
	platformPattern = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)
	hostPattern     = regexp.MustCompile(`^[A-Za-z0-9.\-\[\]:]+$`)
)

// DefaultExecutor is the build tool that Kiln is made and tested with.
func DefaultExecutor() Executor {
	return Executor{Name: "osscontainertools/kaniko", Version: "v1.27.5", Flags: []string{"--snapshot-mode=redo"}}
}

func (c Config) withDefaults() Config {
	if c.Platform == "" {
		c.Platform = "linux/" + runtime.GOARCH
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Minute
	}
	if c.Executor.Name == "" {
		c.Executor = DefaultExecutor()
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	if !platformPattern.MatchString(c.Platform) {
		faults = append(faults, fmt.Errorf("platform %q is not os/arch[/variant]", c.Platform))
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout %s is negative", c.Timeout))
	}
	for _, u := range append([]string{c.Pip.IndexURL}, c.Pip.ExtraIndexURLs...) {
		if u != "" {
			faults = append(faults, checkIndexURL(u))
		}
	}
	for _, host := range c.Pip.TrustedHosts {
		if !hostPattern.MatchString(host) {
			faults = append(faults, fmt.Errorf("pip trusted host %q is not host or host:port", host))
		}
	}
	return errors.Join(faults...)
}

func checkIndexURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" ||
		strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		// The text may hold a password, so it is not repeated.
		return errors.New("a pip index URL is not an http or https URL with a host")
	}
	return nil
}

// secrets returns pip's settings as build secrets, named as the environment
// variables that pip reads.
func (p Pip) secrets() []Secret {
	var all []Secret
	add := func(id string, values ...string) {
		if value := strings.TrimSpace(strings.Join(values, " ")); value != "" {
			all = append(all, Secret{ID: id, Value: value, Version: withoutUserInfo(value)})
		}
	}
	add("PIP_INDEX_URL", p.IndexURL)
	add("PIP_EXTRA_INDEX_URL", p.ExtraIndexURLs...)
	add("PIP_TRUSTED_HOST", p.TrustedHosts...)
	return all
}
