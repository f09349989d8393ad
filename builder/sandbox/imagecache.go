package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"kiln/builder"
)

// Images knows how images are read. Implementations are safe for concurrent use.
type Images interface {
	// Image returns the image that ref ("repository@sha256:…") names, with the named
	// registry credentials first. Its layers are read within ctx, and what they hold is
	// compared with their digests. Errors are of builder's *Error.
	Image(ctx context.Context, ref, secret string) (v1.Image, error)
}

// imageCache is a folder of unpacked images, shared by all processes that use it:
//
//	<boot>-<digest>/rootfs       what the layers make
//	<boot>-<digest>/image.json   the image's configuration and size
//	<boot>-<digest>.lock         shared: it is used now; exclusive: it is made or removed
//
// Nothing is synced to disk: after the machine has started anew, images are unpacked
// again. An image is in use as long as an attempt that has not ended names its key.
type imageCache struct {
	root  *os.Root
	boot  string
	owner int
	// most bounds one image, total all of them, in bytes.
	most, total int64
	// used returns the keys of images that attempts use.
	used func() map[string]bool
}

// unpacked is an image in the folder.
type unpacked struct {
	key    string
	dir    string
	config v1.Config
	lock   *os.File
}

// release lets the image be removed unless an attempt names it.
func (u *unpacked) release() { _ = u.lock.Close() }

// cached is what image.json holds.
type cached struct {
	Config v1.Config `json:"config"`
	Size   int64     `json:"size"`
}

const (
	imageFile = "image.json"
	rootfs    = "rootfs"
)

// key names the folder of an image.
func (i imageCache) key(ref string) string {
	_, digest, _ := strings.Cut(ref, "@sha256:")
	return i.boot + "-" + digest
}

// get returns the image, unpacked; say is told what takes long. The caller releases it.
func (i imageCache) get(ctx context.Context, source Images, ref, secret string, say func(string, ...any)) (*unpacked, error) {
	key := i.key(ref)
	for {
		lock, err := flock(ctx, i.root, key+".lock", unix.LOCK_SH)
		if err != nil {
			return nil, err
		}
		if found, err := i.read(key); err == nil {
			_ = i.root.Chtimes(key, time.Time{}, time.Now())
			return &unpacked{key: key, dir: path.Join(i.root.Name(), key, rootfs), config: found.Config, lock: lock}, nil
		}
		_ = lock.Close()
		if err := i.make(ctx, source, ref, secret, say); err != nil {
			return nil, err
		}
	}
}

func (i imageCache) read(key string) (cached, error) {
	var c cached
	raw, err := i.root.ReadFile(path.Join(key, imageFile))
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	return c, err
}

// make unpacks the image unless somebody else just did.
func (i imageCache) make(ctx context.Context, source Images, ref, secret string, say func(string, ...any)) error {
	key := i.key(ref)
	lock, err := flock(ctx, i.root, key+".lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := i.read(key); err == nil {
		return nil
	}
	began := time.Now()
	say("Pulling the image %s", ref)
	image, err := source.Image(ctx, ref, secret)
	if err != nil {
		return err
	}
	part := "part-" + key
	size, err := i.unpack(ctx, image, part)
	if err == nil {
		err = errors.Join(i.root.RemoveAll(key), i.root.Rename(part, key))
	}
	if err != nil {
		return i.failed(ctx, part, err)
	}
	say("Unpacked %d MiB in %s", size>>20, time.Since(began).Round(time.Millisecond))
	i.evict(key)
	return nil
}

func (i imageCache) failed(ctx context.Context, part string, err error) error {
	_ = i.root.RemoveAll(part)
	const op = "unpacking the image"
	switch _, ours := errors.AsType[*builder.Error](err); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case ours:
		return err
	case errors.Is(err, errTooLarge):
		return &builder.Error{Kind: builder.KindDiskFull, Op: op, Err: fmt.Errorf("%w (%d MiB)", err, i.most>>20)}
	case full(err):
		return &builder.Error{Kind: builder.KindDiskFull, Op: op, Err: err}
	}
	return unavailable(op, err)
}

func (i imageCache) unpack(ctx context.Context, image v1.Image, part string) (size int64, err error) {
	config, err := image.ConfigFile()
	if err != nil {
		return 0, fmt.Errorf("read the image's configuration: %w", err)
	}
	if err := errors.Join(i.root.RemoveAll(part), i.root.MkdirAll(path.Join(part, rootfs), 0o700)); err != nil {
		return 0, err
	}
	root, err := i.root.OpenRoot(path.Join(part, rootfs))
	if err != nil {
		return 0, err
	}
	defer root.Close()
	u := unpacker{root: root, firstID: i.owner, left: i.most}
	if err := u.unpack(ctx, image); err != nil {
		return 0, err
	}
	// Small files take more than their bytes.
	size = i.most - u.left + int64(u.entries)*4096
	raw, err := json.Marshal(cached{Config: config.Config, Size: size})
	if err == nil {
		err = i.root.WriteFile(path.Join(part, imageFile), raw, 0o600)
	}
	return size, err
}

// evict removes images that were not used for longest until the rest, without the one
// to keep, fits; those of an earlier start of the machine in any case.
func (i imageCache) evict(keep string) {
	type entry struct {
		key  string
		size int64
		at   time.Time
	}
	var all []entry
	var total int64
	for _, key := range children(i.root.Name()) {
		info, err := i.root.Stat(key)
		c, broken := i.read(key)
		if err != nil || key == keep {
			total += c.Size
			continue
		}
		if broken != nil || !strings.HasPrefix(key, i.boot+"-") {
			c.Size, info = i.total, nil
		}
		e := entry{key: key, size: c.Size}
		if info != nil {
			e.at = info.ModTime()
		}
		all, total = append(all, e), total+c.Size
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.key, b.key)) })
	for _, e := range all {
		if total <= i.total {
			return
		}
		if i.remove(e.key) {
			total -= e.size
		}
	}
}

// remove removes an image, or what is left of making one, unless it is in use.
func (i imageCache) remove(key string) bool {
	name := strings.TrimPrefix(key, "part-")
	lock, err := tryFlock(i.root, name+".lock", unix.LOCK_EX)
	if err != nil || lock == nil {
		return false
	}
	defer lock.Close()
	if i.used()[name] && key == name {
		return false
	}
	if err := i.root.RemoveAll(key); err != nil {
		return false
	}
	// Who waits for the lock sees that its file is gone, and makes a new one.
	_ = i.root.Remove(name + ".lock")
	return true
}
