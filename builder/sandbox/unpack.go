package sandbox

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Names of files in layers that say what is gone.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// maxEntries bounds the files of an image; the largest common ones have half a million.
const maxEntries = 2_000_000

// errTooLarge is what unpacking an image ends with that is over its bound.
var errTooLarge = errors.New("the unpacked image is larger than allowed")

// unpacker applies layers, the lowest first, to a root file system. Whatever a layer
// says, nothing is written outside of root. Devices and pipes are left out: a container
// gets its own, and none of an image's has a use in it.
type unpacker struct {
	root *os.Root
	// firstID is the host id of the container's root.
	firstID int
	// left is how many bytes may still be written.
	left    int64
	entries int
	// added are the paths that the current layer has, and the folders above them.
	added map[string]bool
}

// unpack applies all layers of an image.
func (u *unpacker) unpack(ctx context.Context, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return fmt.Errorf("read layers: %w", err)
	}
	if err := u.own(".", 0o755, 0, 0); err != nil {
		return err
	}
	for i, layer := range layers {
		if err := u.fetch(ctx, layer); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	return nil
}

func (u *unpacker) fetch(ctx context.Context, layer v1.Layer) error {
	r, err := layer.Uncompressed()
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	defer r.Close()
	in := canceling{ctx, r}
	if err := u.layer(in); err != nil {
		return err
	}
	// The digest is compared at the end, which is after that of the archive.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	return nil
}

// canceling is a reader that ends with ctx.
type canceling struct {
	ctx context.Context //nolint:containedctx // io.Reader has no place for it
	r   io.Reader
}

// Read implements io.Reader.
func (c canceling) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func (u *unpacker) layer(r io.Reader) error {
	u.added = make(map[string]bool)
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if u.entries++; u.entries > maxEntries {
			return fmt.Errorf("%w: more than %d files", errTooLarge, maxEntries)
		}
		if err := u.entry(h, archive); err != nil {
			return fmt.Errorf("unpack %.200q: %w", h.Name, err)
		}
	}
}

// place returns where a name of the layer is, with the links among the folders above it
// followed as the container would follow them.
func (u *unpacker) place(name string) (string, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return ".", nil
	}
	dir, err := securejoin.SecureJoin(u.root.Name(), path.Dir(name))
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Rel(u.root.Name(), dir); err != nil {
		return "", err
	}
	return path.Join(dir, path.Base(name)), nil
}

func (u *unpacker) entry(h *tar.Header, data io.Reader) error {
	name, err := u.place(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	switch {
	case base == opaque:
		return u.clear(path.Clean(dir))
	case strings.HasPrefix(base, whiteout):
		gone := path.Join(dir, strings.TrimPrefix(base, whiteout))
		if gone == path.Clean(dir) || u.added[gone] {
			return nil
		}
		return u.root.RemoveAll(gone)
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	default:
		return nil
	}
	if err := u.makeRoom(name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	for p := name; p != "." && !u.added[p]; p = path.Dir(p) {
		u.added[p] = true
	}
	return u.make(name, h, data)
}

// makeRoom makes the folders above a name and removes what is in its place, unless both
// are folders.
func (u *unpacker) makeRoom(name string, isDir bool) error {
	if err := u.parents(path.Dir(name)); err != nil {
		return err
	}
	info, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) || name == ".":
		return nil
	case err != nil:
		return err
	case info.IsDir() && isDir:
		return nil
	}
	return u.root.RemoveAll(name)
}

// parents makes the folders that a layer takes for granted.
func (u *unpacker) parents(dir string) error {
	info, err := u.root.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		if err := u.root.RemoveAll(dir); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := u.parents(path.Dir(dir)); err != nil {
		return err
	}
	if err := u.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return u.own(dir, 0o755, 0, 0)
}

func (u *unpacker) make(name string, h *tar.Header, data io.Reader) error {
	mode := h.FileInfo().Mode()
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if _, exists := u.root.Lstat(name); errors.Is(exists, fs.ErrNotExist) {
			err = u.root.Mkdir(name, 0o700)
		}
	case tar.TypeReg:
		err = u.write(name, data)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.root.Lchown(name, u.id(h.Uid), u.id(h.Gid))
	case tar.TypeLink:
		target, err := u.place(h.Linkname)
		if err != nil {
			return err
		}
		// The file has an owner already.
		return u.root.Link(target, name)
	}
	if err == nil {
		err = u.own(name, mode, h.Uid, h.Gid)
	}
	if err == nil {
		// Python compares the times of sources with those in its compiled files.
		err = u.root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return err
}

func (u *unpacker) write(name string, data io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(data, u.left+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if u.left -= n; err == nil && u.left < 0 {
		err = errTooLarge
	}
	return err
}

// own gives a file its owner and, after that, its mode: a change of owner takes set-uid
// bits away.
func (u *unpacker) own(name string, mode fs.FileMode, uid, gid int) error {
	if err := u.root.Lchown(name, u.id(uid), u.id(gid)); err != nil {
		return err
	}
	return u.root.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
}

// id returns the host's id; one that no container has becomes nobody's.
func (u *unpacker) id(id int) int {
	const nobody = 65534
	if id < 0 || id >= mapped {
		id = nobody
	}
	return u.firstID + id
}

// clear removes what lower layers have in a folder.
func (u *unpacker) clear(dir string) error {
	f, err := u.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	for _, base := range names {
		name := path.Join(dir, base)
		if !u.added[name] {
			if err := u.root.RemoveAll(name); err != nil {
				return err
			}
			continue
		}
		if info, err := u.root.Lstat(name); err == nil && info.IsDir() {
			if err := u.clear(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// full reports whether an error says that there is no space.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
