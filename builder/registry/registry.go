package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// Registry talks to image registries. Safe for concurrent use.
type Registry struct {
	cfg       Config
	keychain  authn.Keychain
	transport *http.Transport
	secrets   []string
	redactor  *builder.Redactor
	resolved  cache
	copies    chan struct{}

	mu      sync.Mutex
	current *session
}

var _ builder.Registry = (*Registry)(nil)

// New returns a Registry. A docker config that cannot be read is an error now, not
// at the first pull. The caller closes the Registry.
func New(cfg Config) (*Registry, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	transport, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("registry: the default transport is not an *http.Transport")
	}
	r := &Registry{
		cfg: cfg, keychain: authn.DefaultKeychain, transport: transport.Clone(), copies: make(chan struct{}, maxCopies),
	}
	path := cfg.DockerConfig
	if path != "" {
		r.keychain = fileKeychain{path: path}
	} else {
		path = defaultDockerConfig()
	}
	if path != "" {
		file, err := readDockerConfig(path)
		switch {
		case err == nil:
			r.secrets = secretsOf(file)
		case cfg.DockerConfig != "" || !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	r.redactor = builder.NewRedactor(r.secrets...)
	return r, nil
}

// Secrets returns the credentials that the docker config held when New read it, for
// redaction. What credential helpers give is not among them.
func (r *Registry) Secrets() []string { return slices.Clone(r.secrets) }

// Close closes idle connections. The Registry must not be used afterwards.
func (r *Registry) Close() { r.transport.CloseIdleConnections() }
