package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// Tree writes a hostile tree into a folder. Only regular files, folders and links
// come out of it. It holds these promises, whatever it is asked to do:
//
//   - Nothing is outside of the folder. Names are relative, without "..", in UTF-8 and
//     bounded, and symbolic links are made last, so that nothing is written through
//     one; os.Root would refuse it besides.
//   - No symbolic link leads out, not through other links either.
//   - Number, size and ratio are within the limits, counted as they are written.
//   - Modes are permissions only, and the owner may always read and write.
//
// An entry takes the place of an earlier one of the same name, but folders stay
// folders. Without a folder all is checked and nothing written. Not safe for
// concurrent use.
type Tree struct {
	ctx    context.Context //nolint:containedctx // one tree is one operation; nil: it is never canceled
	root   *os.Root
	limits Limits
	// packed is how much of the archive was read until now; nil: there is none. The
	// ratio is not looked at below the size ratioFrom.
	packed    func() int64
	ratioFrom int64
	// Fixed, when set, is the time of all files.
	Fixed time.Time

	nodes   map[string]node
	entries int
	written int64
}

// node is what a name stands for: a folder, a symbolic link or else a file.
type node struct {
	folder bool
	target string
	time   time.Time
}

// New returns a tree in the folder root. The operation that ctx is of is the whole tree.
func New(ctx context.Context, root *os.Root, limits Limits) *Tree {
	return &Tree{ctx: ctx, root: root, limits: limits, ratioFrom: ratioFrom, nodes: map[string]node{}}
}

// newCheck returns a tree that writes nothing, with the default limits.
func newCheck() *Tree {
	return &Tree{limits: Limits{}.WithDefaults(), ratioFrom: ratioFrom, nodes: map[string]node{}}
}

// canceled returns why the operation was canceled, nil if it was not.
func (t *Tree) canceled() error {
	if t.ctx == nil {
		return nil
	}
	return context.Cause(t.ctx)
}

// ratioFrom is the size below which the ratio is not looked at: little text compresses
// very well.
const ratioFrom = 64 << 20

// maxName is the longest name of a file on Linux, in bytes.
const maxName = 255

// shown is a name from outside in an error.
func shown(name string) string { return fmt.Sprintf("%.80q", name) }

// clean checks a name and takes off what means nothing. The folder itself is ".".
func (t *Tree) clean(name string) (string, error) {
	switch {
	case len(name) > t.limits.Path:
		return "", invalid("the name %s… in the source is longer than the limit of %d bytes", shown(name), t.limits.Path)
	case !utf8.ValidString(name):
		return "", invalid("the name %s in the source is not UTF-8", shown(name))
	case strings.ContainsRune(name, 0):
		return "", invalid("the name %s in the source holds a zero byte", shown(name))
	case strings.HasPrefix(name, "/"):
		return "", invalid("the name %s in the source is absolute", shown(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", invalid("the name %s in the source leads out of it", shown(name))
		}
		if len(part) > maxName {
			return "", invalid("a part of the name %s… in the source is longer than %d bytes", shown(name), maxName)
		}
	}
	return path.Clean(name), nil
}

// admit checks the name of an entry and counts it.
func (t *Tree) admit(name string) (string, error) {
	if err := t.canceled(); err != nil {
		return "", err
	}
	if t.entries++; t.entries > t.limits.Entries {
		return "", t.tooMany()
	}
	return t.clean(name)
}

func (t *Tree) tooMany() error {
	return invalid("the source has more files, folders and links than the limit of %d", t.limits.Entries)
}

// Folder makes a folder and those above it.
func (t *Tree) Folder(name string, at time.Time) error {
	name, err := t.admit(name)
	if err != nil {
		return err
	}
	return t.makeFolder(name, at)
}

func (t *Tree) makeFolder(name string, at time.Time) error {
	if name == "." {
		return nil
	}
	old, exists := t.nodes[name]
	switch {
	case exists && !old.folder:
		return invalid("%s in the source is a folder and something else", shown(name))
	case exists:
		t.nodes[name] = node{folder: true, time: at}
		return nil
	}
	if err := t.makeFolder(path.Dir(name), at); err != nil {
		return err
	}
	if len(t.nodes) >= t.limits.Entries { // folders that no entry names count too
		return t.tooMany()
	}
	t.nodes[name] = node{folder: true, time: at}
	if t.root == nil {
		return nil
	}
	return writing(t.root.Mkdir(name, 0o755))
}

// replace makes room for a file or a link.
func (t *Tree) replace(name string, at time.Time) error {
	if name == "." {
		return invalid("the source has an entry without a name")
	}
	if err := t.makeParents(name, at); err != nil {
		return err
	}
	old, exists := t.nodes[name]
	switch {
	case !exists:
		return nil
	case old.folder:
		return invalid("%s in the source is a folder and something else", shown(name))
	}
	delete(t.nodes, name)
	if t.root == nil || old.target != "" {
		return nil
	}
	// Not only cut: another name may stand for the same file.
	return writing(t.root.Remove(name))
}

// makeParents makes the folders above a name that are not there yet.
func (t *Tree) makeParents(name string, at time.Time) error {
	dir := path.Dir(name)
	if n, exists := t.nodes[dir]; exists && n.folder {
		return nil
	}
	return t.makeFolder(dir, at)
}

// File writes a regular file with the permissions of mode. Size is what is announced,
// -1 if nothing is.
func (t *Tree) File(name string, mode fs.FileMode, at time.Time, size int64, r io.Reader) error {
	name, err := t.admit(name)
	if err != nil {
		return err
	}
	if size > t.limits.Unpacked-t.written {
		return t.tooMuch()
	}
	if err := t.replace(name, at); err != nil {
		return err
	}
	at = t.timeOf(at)
	t.nodes[name] = node{time: at}
	if t.root == nil {
		_, err := io.Copy(io.Discard, counted{t, r})
		return err
	}
	mode = mode.Perm() | 0o600
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return writing(err)
	}
	_, err = io.Copy(onlyWriter{f}, counted{t, r})
	return errors.Join(err, writing(f.Chmod(mode)), writing(f.Close()), writing(t.root.Chtimes(name, at, at)))
}

// onlyWriter hides ReadFrom, which would copy past the readers in between.
type onlyWriter struct{ io.Writer }

// counted counts and bounds what is written.
type counted struct {
	t *Tree
	r io.Reader
}

// Read implements io.Reader.
func (c counted) Read(p []byte) (int, error) {
	if err := c.t.canceled(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.t.written += int64(n)
	if c.t.written > c.t.limits.Unpacked {
		return n, c.t.tooMuch()
	}
	if tooDense := c.t.checkRatio(0); tooDense != nil {
		return n, tooDense
	}
	return n, err
}

// checkRatio refuses what is much larger than its archive, with a number of bytes that
// is still to be written.
func (t *Tree) checkRatio(more int64) error {
	if size := t.written + more; t.packed != nil && size > t.ratioFrom && size/t.limits.Ratio > t.packed() {
		return invalid("the source is more than %d times as large as its archive, which is the limit", t.limits.Ratio)
	}
	return nil
}

func (t *Tree) tooMuch() error {
	return invalid("the source is larger than the limit of %s when it is unpacked", Size(t.limits.Unpacked))
}

// Link notes a symbolic link; Finish makes it.
func (t *Tree) Link(name, target string, at time.Time) error {
	name, err := t.admit(name)
	if err != nil {
		return err
	}
	switch {
	case target == "" || len(target) > t.limits.Path || strings.ContainsRune(target, 0) || !utf8.ValidString(target):
		return invalid("the link %s in the source leads to an impossible name", shown(name))
	case strings.HasPrefix(target, "/"):
		return invalid("the link %s in the source leads to the absolute name %s", shown(name), shown(target))
	}
	if err := t.replace(name, at); err != nil {
		return err
	}
	t.nodes[name] = node{target: target}
	return nil
}

// sameAs makes name another name of an earlier file.
func (t *Tree) sameAs(name, earlier string, at time.Time) error {
	name, err := t.admit(name)
	if err != nil {
		return err
	}
	if earlier, err = t.clean(earlier); err != nil {
		return err
	}
	n, exists := t.nodes[earlier]
	switch {
	case !exists || n.folder:
		return invalid("the hard link %s in the source is to %s, which is not an earlier file", shown(name), shown(earlier))
	case name == earlier:
		return nil
	}
	if err := t.replace(name, at); err != nil {
		return err
	}
	t.nodes[name] = n
	if t.root == nil || n.target != "" {
		return nil
	}
	return writing(t.root.Link(earlier, name))
}

// ZipEpoch is the earliest time that a zip file, and so a Python wheel, can hold.
// Packaging a source fails on files that are older.
func ZipEpoch() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }

// timeOf returns the time that a file gets.
func (t *Tree) timeOf(at time.Time) time.Time {
	if !t.Fixed.IsZero() {
		at = t.Fixed
	}
	if latest := ZipEpoch().AddDate(120, 0, 0); at.Before(ZipEpoch()) || at.After(latest) {
		return ZipEpoch()
	}
	return at
}

// writing wraps an error of the file system.
func writing(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write the source: %w", err)
}

// Empty removes everything in a folder.
func Empty(dir *os.Root) error {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return writing(err)
	}
	for _, e := range entries {
		if err := dir.RemoveAll(e.Name()); err != nil {
			return writing(err)
		}
	}
	return nil
}

// Size is a number of bytes for people.
func Size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
