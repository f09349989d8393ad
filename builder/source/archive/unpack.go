package archive

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
)

// format of an archive.
type format int

const (
	formatNone format = iota
	formatTar
	formatGzip
	formatZip
)

// sniffed is how much of a file tells its format.
const sniffed = 512

// sniff tells the format by how a file begins, not by its name, so that the same
// bytes are always the same tree.
func sniff(head []byte) format {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return formatGzip
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		return formatZip
	case len(head) >= 262 && bytes.Equal(head[257:262], []byte("ustar")):
		return formatTar
	default:
		return formatNone
	}
}

// readHead returns how f begins.
func readHead(f io.ReaderAt) ([]byte, error) {
	head := make([]byte, sniffed)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return head[:n], nil
}

// holdsTar reports whether a gzip file is that of a tar archive.
func holdsTar(f io.ReaderAt) bool {
	z, err := gzip.NewReader(io.NewSectionReader(f, 0, math.MaxInt64))
	if err != nil {
		return false
	}
	head := make([]byte, sniffed)
	n, _ := io.ReadFull(z, head)
	return sniff(head[:n]) == formatTar
}

// IsArchive decides by name, and by content where the name says nothing, whether a
// file is to be unpacked.
func IsArchive(name string, f io.ReaderAt) (bool, error) {
	lower := strings.ToLower(name)
	if hasSuffix(lower, ".tar.gz", ".tgz", ".tar", ".zip") {
		return true, nil
	}
	if hasSuffix(lower, ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".7z", ".rar") {
		return false, invalid("%s is an archive of a kind that is not supported; use .tar.gz, .tar or .zip", shown(name))
	}
	// "v1.2" is the name of a tag, as in codeload.github.com/…/tar.gz/v1.2.
	if strings.Trim(path.Ext(name), ".0123456789") != "" {
		return false, nil
	}
	head, err := readHead(f)
	if err != nil {
		return false, err
	}
	switch sniff(head) {
	case formatTar, formatZip:
		return true, nil
	case formatGzip:
		return holdsTar(f), nil
	default:
		return false, nil
	}
}

func hasSuffix(s string, suffixes ...string) bool {
	return slices.ContainsFunc(suffixes, func(suffix string) bool { return strings.HasSuffix(s, suffix) })
}

// Unpack writes the archive f into t, and finishes t. Errors are of
// KindInvalidRequest when the archive is at fault.
func Unpack(f *os.File, t *Tree) error {
	info, err := f.Stat()
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return unavailable("read the archive", err)
	}
	head, err := readHead(f)
	if err != nil {
		return unavailable("read the archive", err)
	}
	read := &countedFile{f: f}
	switch sniff(head) {
	case formatGzip:
		t.packed = read.read.Load
		var z *gzip.Reader
		if z, err = gzip.NewReader(read); err == nil {
			err = untar(z, t)
		}
	case formatZip:
		err = unzip(read, info.Size(), t)
	default:
		err = untar(read, t)
	}
	if err == nil && len(t.nodes) == 0 {
		err = invalid("the archive is empty")
	}
	if err == nil {
		err = t.Finish()
	}
	return broken(err)
}

// broken says whose fault it is that an archive cannot be read.
func broken(err error) error {
	if _, corrupt := errors.AsType[flate.CorruptInputError](err); corrupt {
		return invalid("the archive is damaged: %w", err)
	}
	for _, damage := range []error{
		tar.ErrHeader, tar.ErrFieldTooLong, gzip.ErrHeader, gzip.ErrChecksum, zip.ErrFormat, zip.ErrChecksum, zip.ErrAlgorithm,
		io.ErrUnexpectedEOF, io.EOF,
	} {
		if errors.Is(err, damage) && !isOurs(err) {
			return invalid("the archive is damaged, or is none: %w", err)
		}
	}
	return err
}

// countedFile counts what was read of a file.
type countedFile struct {
	f    *os.File
	read atomic.Int64
}

// Read implements io.Reader.
func (c *countedFile) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// ReadAt implements io.ReaderAt.
func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.f.ReadAt(p, off)
	c.read.Add(int64(n))
	return n, err
}

func untar(r io.Reader, t *Tree) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := untarEntry(h, archive, t); err != nil {
			return err
		}
	}
}

func untarEntry(h *tar.Header, r io.Reader, t *Tree) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		// Old archives mark a folder by the slash at its end only.
		if strings.HasSuffix(h.Name, "/") {
			return t.Folder(h.Name, h.ModTime)
		}
		return t.File(h.Name, fs.FileMode(h.Mode&0o777), h.ModTime, h.Size, r)
	case tar.TypeDir:
		return t.Folder(h.Name, h.ModTime)
	case tar.TypeSymlink:
		return t.Link(h.Name, h.Linkname, h.ModTime)
	case tar.TypeLink:
		return t.sameAs(h.Name, h.Linkname, h.ModTime)
	case tar.TypeXGlobalHeader: // what `git archive` begins with
		return nil
	case tar.TypeChar, tar.TypeBlock:
		return invalid("the archive holds the device %s", shown(h.Name))
	case tar.TypeFifo:
		return invalid("the archive holds the named pipe %s", shown(h.Name))
	default:
		return invalid("the archive holds %s, of the unknown type %q", shown(h.Name), h.Typeflag)
	}
}

// directoryEntry bounds what the directory of a zip file may take for each entry.
const directoryEntry = 192

func unzip(f *countedFile, size int64, t *Tree) error {
	// The whole directory is read into memory before the first entry can be counted.
	directory := boundedAt{f: f, left: int64(t.limits.Entries)*directoryEntry + 1<<17, t: t}
	archive, err := zip.NewReader(&directory, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return err
	}
	directory.t = nil
	if len(archive.File) > t.limits.Entries {
		return t.tooMany()
	}
	var packed int64
	t.packed = func() int64 { return packed }
	for _, e := range archive.File {
		packed += int64(min(e.CompressedSize64, 1<<40))
		// The library gives no more than is announced.
		if err := t.checkRatio(int64(min(e.UncompressedSize64, 1<<60))); err != nil {
			return err
		}
		if err := unzipEntry(e, t); err != nil {
			return err
		}
	}
	return nil
}

// boundedAt bounds how much is read, as long as t is set.
type boundedAt struct {
	f    io.ReaderAt
	left int64
	t    *Tree
}

// ReadAt implements io.ReaderAt.
func (b *boundedAt) ReadAt(p []byte, off int64) (int, error) {
	if b.t != nil {
		if b.left -= int64(len(p)); b.left < 0 {
			return 0, b.t.tooMany()
		}
	}
	return b.f.ReadAt(p, off)
}

func unzipEntry(e *zip.File, t *Tree) error {
	mode := e.Mode()
	switch {
	case e.Flags&1 != 0:
		return invalid("%s in the archive is encrypted", shown(e.Name))
	case mode.IsDir():
		return t.Folder(e.Name, e.Modified)
	case !mode.IsRegular() && mode.Type() != fs.ModeSymlink:
		return invalid("the archive holds %s, which is neither file, folder nor link", shown(e.Name))
	}
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if mode.IsRegular() {
		// Archives made on Windows let everybody write; unzip would apply the umask.
		return t.File(e.Name, mode.Perm()&^0o022, e.Modified, int64(min(e.UncompressedSize64, 1<<60)), r)
	}
	target, err := io.ReadAll(io.LimitReader(r, int64(t.limits.Path)+1))
	if err != nil {
		return err
	}
	return t.Link(e.Name, string(target), e.Modified)
}
