package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// Registry talks to image registries, by the configured credentials or, see With, by
// named ones first. Safe for concurrent use.
type Registry struct {
	*shared
	secret string
}

var _ builder.Registry = (*Registry)(nil)

// shared is what Registries with different secrets have in common.
type shared struct {
	cfg       Config
	transport *http.Transport
	redactor  *builder.Redactor
	ecr       *ecrAccount
	clouds    []cloud
	resolved  cache
	copies    chan struct{}

	mu       sync.Mutex
	sessions map[sessionKey]*session
}

// New returns a Registry. A docker config or a certificate that cannot be read is an
// error now, not at the first pull. The caller closes the Registry.
func New(cfg Config) (*Registry, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	transport, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("registry: the default transport is not an *http.Transport")
	}
	r := &Registry{shared: &shared{
		cfg: cfg, transport: transport.Clone(), redactor: builder.NewRedactor(), ecr: &ecrAccount{},
		copies: make(chan struct{}, maxCopies), sessions: map[sessionKey]*session{},
	}}
	r.clouds = cloudsOf(cfg, r.ecr)
	if err := r.learnConfig(); err != nil {
		return nil, err
	}
	if err := r.checkFiles(); err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	return r, nil
}

// checkFiles reads every certificate that is configured.
func (r *Registry) checkFiles() error {
	var faults []error
	if r.cfg.CA != "" {
		_, err := readCA(r.cfg.CA)
		faults = append(faults, err)
	}
	for _, host := range slices.Sorted(maps.Keys(r.cfg.Hosts)) {
		access, err := r.reach(canonical(host))
		if err == nil {
			_, err = tlsConfig(access)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("registry host %q: %w", host, err))
		}
	}
	return errors.Join(faults...)
}

// learnConfig reads the docker config for the first time.
func (r *Registry) learnConfig() error {
	path := r.cfg.DockerConfig
	if path == "" {
		path = defaultDockerConfig()
	}
	if path == "" {
		return nil
	}
	file, err := readDockerConfig(path)
	switch {
	case err == nil:
		r.redactor.Learn(secretsOf(file)...)
	case r.cfg.DockerConfig != "" || !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// With implements builder.Registry. What is returned is closed with r.
func (r *Registry) With(secret string) builder.Registry {
	return &Registry{shared: r.shared, secret: secret}
}

// Redactor hides every credential that was used so far or is used from now on.
func (r *Registry) Redactor() *builder.Redactor { return r.redactor }

// Close closes idle connections. The Registry must not be used afterwards.
func (r *Registry) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		s.close()
	}
	clear(r.sessions)
}
