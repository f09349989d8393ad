package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"regexp"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ContextStore keeps uploaded build contexts under the digest of their content, for
// the topology's ContextMaxAge. Safe for concurrent use.
type ContextStore struct {
	objects jetstream.ObjectStore
	maxAge  time.Duration
}

// Contexts binds to the object store. It fails if that was not provisioned.
func (b *Bus) Contexts(ctx context.Context) (*ContextStore, error) {
	name := b.topology.contexts()
	objects, err := b.js.ObjectStore(ctx, name)
	if err != nil {
		return nil, missing("bucket "+name, err)
	}
	status, err := objects.Status(ctx)
	if err != nil {
		return nil, missing("bucket "+name, err)
	}
	return &ContextStore{objects: objects, maxAge: status.TTL()}, nil
}

var contextDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ErrDigest is matched by the error of content that is not what its digest says.
var ErrDigest = errors.New("content does not have the digest")

// contextTimeout bounds an upload or download whose context has no deadline.
const contextTimeout = time.Hour

// Put stores what r gives under its digest, "sha256:<hex>". What is there already is
// not sent again, unless half of its time is over. Content of another digest is an
// error that matches ErrDigest, and is not stored.
func (s *ContextStore) Put(ctx context.Context, digest string, r io.Reader) error {
	if !contextDigest.MatchString(digest) {
		return fmt.Errorf("store context: %.80q is not a digest", digest)
	}
	info, err := s.objects.GetInfo(ctx, digest)
	if err == nil && info.Digest == objectDigest(digest) && (s.maxAge == 0 || time.Since(info.ModTime) < s.maxAge/2) {
		return nil
	}
	if err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("store context: %w", err)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	checked := &checkedReader{r: r, sum: sha256.New(), want: digest}
	if _, err := s.objects.Put(ctx, jetstream.ObjectMeta{Name: digest, Description: "build context"}, checked); err != nil {
		return fmt.Errorf("store context: %w", err)
	}
	return nil
}

// Open returns the content with that digest, which the caller closes. Reading ends with
// an error if it was changed. The error matches fs.ErrNotExist when there is none. ctx
// bounds the reading too.
func (s *ContextStore) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	ctx, cancel := bounded(ctx)
	object, err := s.objects.Get(ctx, digest)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		err = fs.ErrNotExist
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open context %.80s: %w", digest, err)
	}
	return &openContext{checkedReader: checkedReader{r: object, sum: sha256.New(), want: digest}, object: object, cancel: cancel}, nil
}

// openContext is a context that is being read.
type openContext struct {
	checkedReader
	object io.Closer
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (c *openContext) Close() error {
	c.cancel()
	return c.object.Close()
}

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, contextTimeout, fmt.Errorf("the context took longer than %s", contextTimeout))
}

// checkedReader ends with ErrDigest in place of io.EOF if what it read has another
// digest. It fills what it is given, since each read becomes a message.
type checkedReader struct {
	r    io.Reader
	sum  hash.Hash
	want string
}

// Read implements io.Reader.
func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := io.ReadFull(c.r, p)
	_, _ = c.sum.Write(p[:n]) // a hash does not fail
	if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		return n, nil // the end comes with the next read
	}
	if errors.Is(err, io.EOF) && "sha256:"+hex.EncodeToString(c.sum.Sum(nil)) != c.want {
		err = fmt.Errorf("%w %s", ErrDigest, c.want)
	}
	return n, err
}

// objectDigest is a digest in the form of object stores.
func objectDigest(digest string) string {
	raw, _ := hex.DecodeString(digest[len("sha256:"):]) // the caller checked it
	return "SHA-256=" + base64.URLEncoding.EncodeToString(raw)
}
