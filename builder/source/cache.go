package source

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/source/archive"
)

// Folders of a cache.
const (
	blobDir = "sha256"
	tempDir = "tmp"
)

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// cache keeps files by the SHA-256 of their content in a folder that several
// processes may share. A file is there completely or not at all. One that is evicted
// stays readable for who has it open. Everything that changes names in the folder
// holds a lock on the file "lock"; what is being written holds a lock on itself, so
// that what a dead process left can be told from it. Safe for concurrent use.
type cache struct {
	root *os.Root
	size int64
}

func openCache(dir string, size int64) (*cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create source cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open source cache: %w", err)
	}
	c := &cache{root: root, size: size}
	for _, name := range []string{blobDir, tempDir} {
		err = errors.Join(err, root.MkdirAll(name, 0o700))
	}
	if err == nil {
		err = c.sweep()
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("prepare source cache %s: %w", dir, err)
	}
	return c, nil
}

func (c *cache) close() error { return c.root.Close() }

// lock takes the lock of the whole cache, for a moment.
func (c *cache) lock() (unlock func(), err error) {
	f, err := c.root.OpenFile("lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// sweep removes what processes that are gone were writing.
func (c *cache) sweep() error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := fs.ReadDir(c.root.FS(), tempDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(tempDir, e.Name())
		f, err := c.root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = c.root.RemoveAll(name)
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// temp makes a file or a folder that is swept when this process is gone. Remove
// removes and closes it.
func (c *cache) temp(folder bool) (f *os.File, name string, remove func(), err error) {
	unlock, err := c.lock()
	if err != nil {
		return nil, "", nil, err
	}
	defer unlock()
	name = path.Join(tempDir, rand.Text())
	if folder {
		if err = c.root.Mkdir(name, 0o700); err == nil {
			f, err = c.root.Open(name)
		}
	} else {
		f, err = c.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, "", nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, "", nil, err
	}
	return f, name, func() {
		_ = c.root.RemoveAll(name)
		_ = f.Close()
	}, nil
}

// tempFolder returns an empty folder; remove closes and removes it.
func (c *cache) tempFolder() (dir *os.Root, remove func(), err error) {
	_, name, removeIt, err := c.temp(true)
	if err != nil {
		return nil, nil, unavailable("make a folder in the source cache", err)
	}
	if dir, err = c.root.OpenRoot(name); err != nil {
		removeIt()
		return nil, nil, unavailable("make a folder in the source cache", err)
	}
	return dir, func() {
		_ = dir.Close()
		removeIt()
	}, nil
}

// put stores what r gives, at most limit bytes, and returns its hex digest.
func (c *cache) put(ctx context.Context, r io.Reader, limit int64) (digest string, err error) {
	f, name, remove, err := c.temp(false)
	if err != nil {
		return "", unavailable("make a file in the source cache", err)
	}
	defer remove()
	sum := sha256.New()
	n, err := io.Copy(onlyWriter{f}, io.TeeReader(io.LimitReader(contextReader{ctx, r}, limit+1), sum))
	switch {
	case errors.Is(err, unix.ENOSPC):
		return "", unavailable("write to the source cache", err)
	case err != nil:
		return "", err
	case n > limit:
		return "", tooLarge(limit)
	}
	digest = hex.EncodeToString(sum.Sum(nil))
	unlock, err := c.lock()
	if err != nil {
		return "", unavailable("lock the source cache", err)
	}
	defer unlock()
	if err := c.root.Rename(name, path.Join(blobDir, digest)); err != nil {
		return "", unavailable("write to the source cache", err)
	}
	return digest, c.evict(digest)
}

// evict removes what was not used for the longest time until the rest fits, but not
// the file to keep.
func (c *cache) evict(keep string) error {
	entries, err := fs.ReadDir(c.root.FS(), blobDir)
	if err != nil {
		return unavailable("read the source cache", err)
	}
	var total int64
	files := make([]fs.FileInfo, 0, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += info.Size()
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, f := range files {
		if total <= c.size {
			break
		}
		if f.Name() == keep {
			continue
		}
		if err := c.root.Remove(path.Join(blobDir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return unavailable("evict from the source cache", err)
		}
		total -= f.Size()
	}
	return nil
}

// open returns the file with that digest, verified, and nil when it is not there. It
// counts as used now.
func (c *cache) open(ctx context.Context, digest string) (*os.File, error) {
	if !digestPattern.MatchString(digest) {
		return nil, fmt.Errorf("%.80q is not a digest", digest)
	}
	name := path.Join(blobDir, digest)
	f, err := c.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("read the source cache", err)
	}
	sum := sha256.New()
	_, err = io.Copy(sum, contextReader{ctx, f})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, unavailable("read the source cache", err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		_ = f.Close()
		return nil, c.drop(digest)
	}
	now := time.Now()
	_ = c.root.Chtimes(name, now, now) // evicted in between: no matter
	return f, nil
}

// has reports whether the file is there, without reading it.
func (c *cache) has(digest string) bool {
	_, err := c.root.Stat(path.Join(blobDir, digest))
	return err == nil
}

// drop removes a file.
func (c *cache) drop(digest string) error {
	if err := c.root.Remove(path.Join(blobDir, digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unavailable("remove from the source cache", err)
	}
	return nil
}

func unavailable(what string, err error) error {
	return builder.Errorf(builder.KindUnavailable, "", "%s: %w", what, err)
}

func tooLarge(limit int64) error {
	return invalid("the source is larger than the limit of %s", archive.Size(limit))
}

// contextReader stops reading when the context is done.
type contextReader struct {
	ctx context.Context //nolint:containedctx // io.Reader has no place for it
	r   io.Reader
}

// Read implements io.Reader.
func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// onlyWriter hides ReadFrom, which would copy past the readers in between.
type onlyWriter struct{ io.Writer }
