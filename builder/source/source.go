package source

import (
	"context"
	"fmt"
	"os"

	"kiln/builder"
	"kiln/builder/source/archive"
)

// Sources finds and fetches code. Safe for concurrent use.
type Sources struct {
	cfg     Config
	network *network
	cache   *cache
	tags    *tags
}

var _ builder.Sources = (*Sources)(nil)

// New returns Sources, after it removed from the cache what processes left behind
// that are gone. The caller closes it.
func New(cfg Config) (*Sources, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("source configuration: %w", err)
	}
	network, err := newNetwork(cfg)
	if err != nil {
		return nil, fmt.Errorf("source network: %w", err)
	}
	cache, err := openCache(cfg.CacheDir, cfg.CacheSize)
	if err != nil {
		return nil, err
	}
	return &Sources{cfg: cfg, network: network, cache: cache, tags: newTags()}, nil
}

// Close closes idle connections and the cache. Sources must not be used afterwards.
func (s *Sources) Close() error {
	s.network.transport.CloseIdleConnections()
	return s.cache.close()
}

// Check reports whether text has the form of a source that can be fetched, without
// any I/O. Its errors are of builder.KindInvalidRequest.
func Check(text string) error {
	_, err := parse(text)
	return border(context.Background(), "reading the source", nil, err)
}

// Pin implements builder.Sources: for Git it asks for the refs only, anything else is
// downloaded into the cache. The version of a single file has its name at the end,
// since the same bytes under another name are another tree.
func (s *Sources) Pin(ctx context.Context, url string, env map[string]string) (string, error) {
	l, err := parse(url)
	if err != nil {
		return "", border(ctx, "pinning the source", nil, err)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	v, err := s.pin(ctx, l, env)
	if err != nil {
		return "", border(ctx, "pinning the source "+l.String(), secretsOf(l, env), err)
	}
	return v.String(), nil
}

func (s *Sources) pin(ctx context.Context, l location, env map[string]string) (version, error) {
	if l.kind == kindGit {
		return s.pinGit(ctx, l, env)
	}
	if l.base() == "" && l.kind != kindContext {
		return version{}, invalid("the source names no file")
	}
	digest, err := s.download(ctx, l, env)
	if err != nil {
		return version{}, err
	}
	f, err := s.cache.open(ctx, digest)
	if err != nil {
		return version{}, err
	}
	if f == nil {
		return version{}, unavailable("read the source cache", fmt.Errorf("%s was evicted at once", digest))
	}
	defer f.Close()
	v := version{digest: digest}
	if l.kind == kindContext {
		return v, nil
	}
	packed, err := archive.IsArchive(l.base(), f)
	if !packed {
		v.name = l.base()
	}
	return v, err
}

// Fetch implements builder.Sources. When it fails dir is empty.
func (s *Sources) Fetch(ctx context.Context, url, pinned string, env map[string]string, dir *os.Root) error {
	l, err := parse(url)
	if err != nil {
		return border(ctx, "fetching the source", nil, err)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err = s.fetch(ctx, l, pinned, env, dir); err == nil {
		return nil
	}
	err = border(ctx, "fetching the source "+l.String(), secretsOf(l, env), err)
	if eerr := archive.Empty(dir); eerr != nil {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "removing the source", Err: fmt.Errorf("%w, after: %w", eerr, err)}
	}
	return err
}

func (s *Sources) fetch(ctx context.Context, l location, pinned string, env map[string]string, dir *os.Root) error {
	v, err := parseVersion(pinned)
	if err != nil {
		return builder.Errorf(builder.KindInvalidRequest, "", "%w", err)
	}
	if (v.commit != "") != (l.kind == kindGit) || v.dir != l.dir {
		return invalid("%s is not a version of this source", pinned)
	}
	t := archive.New(ctx, dir, s.cfg.Limits)
	if l.kind == kindGit {
		if err := s.checkout(ctx, l, v.commit, env, t); err != nil {
			return err
		}
		return t.Finish()
	}
	f, err := s.cached(ctx, l, v.digest, env)
	if err != nil {
		return err
	}
	defer f.Close()
	if v.name != "" {
		if err := t.File(v.name, 0o644, archive.ZipEpoch(), -1, f); err != nil {
			return err
		}
		return t.Finish()
	}
	err = archive.Unpack(f, t)
	if builder.KindOf(err) == builder.KindInvalidRequest && ctx.Err() == nil && isOurs(err) {
		_ = s.cache.drop(v.digest) // nobody will ever unpack it
	}
	return err
}

// cached returns the bytes with that digest: from the cache, else downloaded again.
func (s *Sources) cached(ctx context.Context, l location, digest string, env map[string]string) (*os.File, error) {
	f, err := s.cache.open(ctx, digest)
	if f != nil || err != nil {
		return f, err
	}
	now, err := s.download(ctx, l, env)
	if err != nil {
		return nil, err
	}
	if now != digest {
		// To be pinned again, by the next try.
		return nil, unavailable("fetch what was pinned", fmt.Errorf("the source changed since: it was sha256:%s and is sha256:%s", digest, now))
	}
	f, err = s.cache.open(ctx, digest)
	if f == nil && err == nil {
		err = unavailable("read the source cache", fmt.Errorf("%s was evicted at once", digest))
	}
	return f, err
}

func (s *Sources) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.cfg.Timeout, fmt.Errorf("it took longer than the limit of %s", s.cfg.Timeout))
}
