package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"kiln/builder"
)

// content is what a server gives for a location.
type content struct {
	// body is nil when the object is the one of the entity tag that was sent.
	body io.ReadCloser
	// size in bytes, -1 if it is not known.
	size int64
	// tag is the entity tag; empty: none.
	tag string
}

// download brings the bytes of a location into the cache and returns their digest.
func (s *Sources) download(ctx context.Context, l location, env map[string]string) (string, error) {
	key := tagKey(l, env)
	tag, digest := s.tags.get(key)
	if !s.cache.has(digest) {
		tag = ""
	}
	o, err := s.open(ctx, l, env, tag)
	if err != nil {
		return "", err
	}
	if o.body == nil {
		return digest, nil
	}
	defer o.body.Close()
	if o.size > s.cfg.Limits.Download {
		return "", tooLarge(s.cfg.Limits.Download)
	}
	if digest, err = s.cache.put(ctx, o.body, s.cfg.Limits.Download); err != nil {
		return "", err
	}
	if l.digest != "" && l.digest != "sha256:"+digest {
		return "", unavailable("read the uploaded context", errors.Join(fmt.Errorf("it is sha256:%s", digest), s.cache.drop(digest)))
	}
	// A weak tag says that the content means the same, not that it is the same.
	if o.tag != "" && !strings.HasPrefix(o.tag, "W/") {
		s.tags.put(key, o.tag, digest)
	}
	return digest, nil
}

// open asks for an object. With a tag the answer may be that it has not changed.
func (s *Sources) open(ctx context.Context, l location, env map[string]string, tag string) (content, error) {
	switch l.kind {
	case kindWeb:
		return s.openWeb(ctx, l, tag)
	case kindS3:
		return s.openS3(ctx, l, env, tag)
	case kindGS:
		return s.openGS(ctx, l, env, tag)
	case kindAzure:
		return s.openAzure(ctx, l, env, tag)
	case kindV3IO:
		return s.openV3IO(ctx, l, env, tag)
	case kindContext:
		return s.openContext(ctx, l)
	default:
		return content{}, invalid("%s cannot be downloaded", l)
	}
}

func (s *Sources) openContext(ctx context.Context, l location) (content, error) {
	if s.cfg.Contexts == nil {
		return content{}, invalid("this worker has no store of uploaded contexts")
	}
	body, err := s.cfg.Contexts.Open(ctx, l.digest)
	if errors.Is(err, fs.ErrNotExist) {
		return content{}, notFound("the uploaded context is not there, or not any more; run `kiln build` again")
	}
	if err != nil {
		return content{}, err
	}
	return content{body: body, size: -1}, nil
}

func (s *Sources) openWeb(ctx context.Context, l location, tag string) (content, error) {
	var authorize func(*http.Request)
	if l.user != nil {
		password, _ := l.user.Password()
		authorize = func(r *http.Request) { r.SetBasicAuth(l.user.Username(), password) }
	}
	return s.get(ctx, &l.url, authorize, tag, "credentials may be in the URL (https://user:password@host/…)")
}

// get asks for a URL. Hint says where credentials are taken from.
func (s *Sources) get(ctx context.Context, u *url.URL, authorize func(*http.Request), tag, hint string) (content, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return content{}, invalid("the source is not a valid URL")
	}
	r.Header.Set("User-Agent", "kiln")
	// Cloud Storage would unpack what is stored compressed, if this were not said.
	r.Header.Set("Accept-Encoding", "gzip, identity")
	if tag != "" {
		r.Header.Set("If-None-Match", tag)
	}
	resp, err := s.network.client(u, authorize).Do(r)
	if err != nil {
		return content{}, err
	}
	switch {
	case resp.StatusCode == http.StatusNotModified && tag != "":
		_ = resp.Body.Close()
		return content{}, nil
	case resp.StatusCode != http.StatusOK:
		_ = resp.Body.Close()
		return content{}, answered(resp.StatusCode, hint)
	}
	return content{body: resp.Body, size: resp.ContentLength, tag: resp.Header.Get("ETag")}, nil
}

// maxTags bounds what is remembered; it is emptied when it is full.
const maxTags = 1000

// tags remembers which content had which entity tag, so that what did not change is
// not downloaded again. Safe for concurrent use.
type tags struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte][2]string
}

func newTags() *tags { return &tags{known: map[[sha256.Size]byte][2]string{}} }

func (t *tags) get(key [sha256.Size]byte) (tag, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair := t.known[key]
	return pair[0], pair[1]
}

func (t *tags) put(key [sha256.Size]byte, tag, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTags {
		clear(t.known)
	}
	t.known[key] = [2]string{tag, digest}
}

// tagKey is the same for the same location with the same credentials: what one may
// see says nothing about another.
func tagKey(l location, env map[string]string) [sha256.Size]byte {
	sum := sha256.New()
	write := func(field string) { fmt.Fprintf(sum, "%d:%s", len(field), field) }
	for _, field := range []string{l.String(), l.url.RawQuery, l.user.String()} {
		write(field)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		write(name)
		write(env[name])
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// secretVariables are those whose values are credentials.
func secretVariables() []string {
	return []string{
		"GIT_TOKEN", "GIT_PASSWORD", "GIT_SSH_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"GCP_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY",
		"AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "V3IO_ACCESS_KEY",
	}
}

// secretsOf returns what must not be in an error.
func secretsOf(l location, env map[string]string) []string {
	var secrets []string
	for _, name := range secretVariables() {
		secrets = append(secrets, env[name])
	}
	if l.user != nil {
		password, _ := l.user.Password()
		// A token may stand in the place of the user, but "git" and the like are no secret.
		if user := l.user.Username(); password == "" && len(user) > len("x-access-token") {
			secrets = append(secrets, user)
		}
		secrets = append(secrets, password)
	}
	return slices.DeleteFunc(secrets, func(s string) bool { return s == "" })
}

// first returns the first variable that is set.
func first(env map[string]string, names ...string) string {
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = strings.TrimSpace(env[name])
	}
	return cmp.Or(values...)
}

// denied is a refusal of credentials by a client library that knows no HTTP status.
func denied(hint string) error {
	return builder.Errorf(builder.KindSourceNotFound, "", "the server denies access; %s", hint)
}
