package archive

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// ignoreFile names what Pack leaves out, in the form of
// https://docs.docker.com/build/concepts/context/#dockerignore-files.
const ignoreFile = ".dockerignore"

// Pack writes a folder as tar.gz, the same bytes for the same content whatever the
// time, the owner and the machine: sorted, without times and owners, with modes 0755
// and 0644. It honours a .dockerignore and leaves .git out unless that takes it in
// ("!.git"). Links that lead out of the folder, sockets and devices are an error. It
// returns the digest ("sha256:<hex>") and the number of the bytes.
func Pack(dir string, w io.Writer) (digest string, n int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", 0, fmt.Errorf("open source folder: %w", err)
	}
	defer root.Close()
	sum := &summed{w: w, sum: sha256.New()}
	z := gzip.NewWriter(sum)
	p := packer{root: root, archive: tar.NewWriter(z), links: newCheck()}
	if p.ignored, err = readIgnored(root); err == nil {
		err = p.pack(".", patternmatcher.MatchInfo{})
	}
	if err == nil {
		err = p.links.Finish()
	}
	if err == nil && len(p.links.nodes) == 0 {
		err = errors.New("there is nothing in it")
	}
	if err = errors.Join(err, p.archive.Close(), z.Close()); err != nil {
		return "", 0, fmt.Errorf("pack source folder %s: %w", dir, err)
	}
	return sum.digest(), sum.n, nil
}

// PackFile passes an archive (tar, tar.gz or zip) on to w, after it checked that a
// worker with the default limits will unpack it. It returns the archive's digest, the
// number of its bytes and the extension of its kind: ".tar", ".tar.gz" or ".zip".
func PackFile(file string, w io.Writer) (digest string, n int64, ext string, err error) {
	f, err := os.Open(file) //nolint:gosec // the user names the file
	if err != nil {
		return "", 0, "", fmt.Errorf("open source archive: %w", err)
	}
	defer f.Close()
	head, err := readHead(f)
	if err == nil {
		switch sniff(head) {
		case formatTar:
			ext = ".tar"
		case formatGzip:
			ext = ".tar.gz"
		case formatZip:
			ext = ".zip"
		default:
			err = errors.New("it is neither a folder nor a tar, tar.gz or zip archive")
		}
	}
	if err == nil {
		err = Unpack(f, newCheck())
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	sum := &summed{w: w, sum: sha256.New()}
	if err == nil {
		_, err = io.Copy(sum, f)
	}
	if err != nil {
		return "", 0, "", fmt.Errorf("source archive %s: %w", file, err)
	}
	return sum.digest(), sum.n, ext, nil
}

// summed counts and hashes what passes.
type summed struct {
	w   io.Writer
	sum interface {
		io.Writer
		Sum(b []byte) []byte
	}
	n int64
}

// Write implements io.Writer.
func (s *summed) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	_, _ = s.sum.Write(p[:n]) // a hash does not fail
	s.n += int64(n)
	return n, err
}

func (s *summed) digest() string { return "sha256:" + hex.EncodeToString(s.sum.Sum(nil)) }

// readIgnored reads the patterns of what is left out.
func readIgnored(root *os.Root) (*patternmatcher.PatternMatcher, error) {
	patterns := []string{".git"}
	f, err := root.Open(ignoreFile)
	if err == nil {
		var own []string
		own, err = ignorefile.ReadAll(f)
		_ = f.Close()
		patterns = append(patterns, own...)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", ignoreFile, err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ignoreFile, err)
	}
	return matcher, nil
}

// packer writes one folder.
type packer struct {
	root    *os.Root
	archive *tar.Writer
	ignored *patternmatcher.PatternMatcher
	// links checks what a worker will check.
	links *Tree
}

// pack writes what is in a folder, in the order of names.
func (p *packer) pack(dir string, parent patternmatcher.MatchInfo) error {
	entries, err := fs.ReadDir(p.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		skip, match, err := p.ignored.MatchesUsingParentResults(name, parent)
		if err != nil {
			return fmt.Errorf("apply %s: %w", ignoreFile, err)
		}
		if skip && (!e.IsDir() || !p.ignored.Exclusions()) {
			continue
		}
		if !skip {
			if err := p.entry(name, e); err != nil {
				return err
			}
		}
		if e.IsDir() {
			if err := p.pack(name, match); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *packer) entry(name string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: 0o644}
	if info.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	switch info.Mode().Type() {
	case 0:
		return p.file(h, info.Size())
	case fs.ModeDir:
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, name+"/", 0o755
		err = p.links.Folder(name, ZipEpoch())
	case fs.ModeSymlink:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = p.root.Readlink(name); err == nil {
			err = p.links.Link(name, h.Linkname, ZipEpoch())
		}
	default:
		return fmt.Errorf("%s is neither file, folder nor link; name it in %s to leave it out", name, ignoreFile)
	}
	if err != nil {
		return err
	}
	return p.archive.WriteHeader(h)
}

func (p *packer) file(h *tar.Header, size int64) error {
	f, err := p.root.Open(h.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, size
	if err := p.archive.WriteHeader(h); err != nil {
		return err
	}
	// No more than was announced: a log may grow meanwhile.
	if err := p.links.File(h.Name, 0o644, ZipEpoch(), size, io.TeeReader(io.LimitReader(f, size), p.archive)); err != nil {
		return err
	}
	if err := p.archive.Flush(); err != nil {
		return fmt.Errorf("%s became shorter while it was read: %w", h.Name, err)
	}
	return nil
}
