package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// Registry talks to image registries. Safe for concurrent use.
type Registry struct {
	cfg       Config
	keychain  authn.Keychain
	transport *http.Transport
	secrets   []string
}

var _ builder.Registry = (*Registry)(nil)

// New returns a Registry. A docker config that cannot be read is an error now, not
// at the first pull.
func New(cfg Config) (*Registry, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	transport, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("registry: the default transport is not an *http.Transport")
	}
	r := &Registry{cfg: cfg, keychain: authn.DefaultKeychain, transport: transport.Clone()}
	if cfg.DockerConfig == "" {
		return r, nil
	}
	secrets, err := readDockerConfig(cfg.DockerConfig)
	if err != nil {
		return nil, err
	}
	r.keychain, r.secrets = fileKeychain{path: cfg.DockerConfig}, secrets
	return r, nil
}

// Secrets returns the credentials of the docker config, for redaction.
func (r *Registry) Secrets() []string { return r.secrets }

// Close closes idle connections.
func (r *Registry) Close() { r.transport.CloseIdleConnections() }

// Resolve returns digest and compressed size of the image that ref names for the
// platform (os/arch[/variant]).
func (r *Registry) Resolve(ctx context.Context, ref, platform string) (builder.Image, error) {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	op := "resolving base image " + ref
	parsed, err := r.parse(ref)
	if err != nil {
		return builder.Image{}, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	p, err := v1.ParsePlatform(platform)
	if err != nil {
		return builder.Image{}, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	img, err := remote.Image(parsed, append(r.options(ctx), remote.WithPlatform(*p))...)
	if err != nil {
		return builder.Image{}, classify(err, op, builder.KindBaseNotFound, builder.KindPullDenied)
	}
	digest, err := img.Digest()
	if err != nil {
		return builder.Image{}, classify(err, op, builder.KindBaseNotFound, builder.KindPullDenied)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return builder.Image{}, classify(err, op, builder.KindBaseNotFound, builder.KindPullDenied)
	}
	out := builder.Image{Ref: ref, Digest: digest.String()}
	for _, layer := range manifest.Layers {
		out.Size += layer.Size
	}
	return out, nil
}

// Verify checks that the manifest of "repository@digest" can be read.
func (r *Registry) Verify(ctx context.Context, imageRef string) error {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	op := "verifying " + imageRef
	parsed, err := r.parse(imageRef)
	if err != nil {
		return &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	if _, err := remote.Head(parsed, r.options(ctx)...); err != nil {
		if status(err) == http.StatusNotFound {
			return &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: fmt.Errorf("%w: %w", builder.ErrImageMissing, err)}
		}
		return classify(err, op, builder.KindUnavailable, builder.KindPullDenied)
	}
	return nil
}

// Tag makes target name the image "repository@digest". In the same repository that
// is one manifest; else the image is copied, by mounting its layers where the
// registry can. Repeating it is harmless.
func (r *Registry) Tag(ctx context.Context, imageRef, target string) error {
	ctx, cancel := r.bound(ctx)
	defer cancel()
	op := "tagging " + target
	source, err := r.parse(imageRef)
	if err != nil {
		return &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	dst, err := r.parse(target)
	if err != nil {
		return &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	tag, ok := dst.(name.Tag)
	if !ok {
		return builder.Errorf(builder.KindInvalidRequest, op, "it is not a tag")
	}
	desc, err := remote.Get(source, r.options(ctx)...)
	if err != nil {
		return classify(err, op, builder.KindUnavailable, builder.KindPullDenied)
	}
	if source.Context().Name() == tag.Context().Name() {
		err = remote.Tag(tag, desc, r.options(ctx)...)
	} else {
		err = r.copyImage(ctx, desc, tag)
	}
	if err != nil {
		return classify(err, op, builder.KindUnavailable, builder.KindPushDenied)
	}
	return nil
}

func (r *Registry) copyImage(ctx context.Context, desc *remote.Descriptor, tag name.Tag) error {
	if desc.MediaType.IsIndex() {
		index, err := desc.ImageIndex()
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		return remote.WriteIndex(tag, index, r.options(ctx)...)
	}
	img, err := desc.Image()
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	return remote.Write(tag, img, r.options(ctx)...)
}

func (r *Registry) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, r.cfg.Timeout, fmt.Errorf("the registry did not answer within %s", r.cfg.Timeout))
}

func (r *Registry) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(r.keychain), remote.WithTransport(strict{r.transport, r.cfg}),
		remote.WithUserAgent("kiln"), remote.WithRetryStatusCodes(), // whoever calls decides about retries
	}
}

func (r *Registry) parse(ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("parse reference: %w", err)
	}
	if !r.cfg.IsInsecure(parsed.Context().RegistryStr()) {
		return parsed, nil
	}
	if parsed, err = name.ParseReference(ref, name.Insecure); err != nil {
		return nil, fmt.Errorf("parse reference: %w", err)
	}
	return parsed, nil
}

// strict refuses plain HTTP to hosts that are not configured for it: the library
// falls back to it for some names of its own choice.
type strict struct {
	next http.RoundTripper
	cfg  Config
}

// RoundTrip implements http.RoundTripper.
func (s strict) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !s.cfg.IsInsecure(r.URL.Host) {
		return nil, fmt.Errorf("refusing plain HTTP to %s: it is not configured as insecure", r.URL.Host)
	}
	return s.next.RoundTrip(r)
}

// short cuts what a registry answered to something readable.
func short(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}
