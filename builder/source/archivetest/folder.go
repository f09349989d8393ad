// Package archivetest has what tests of sources share: archives, the hostile ones too, and
// folders that tell when something outside of them was changed.
package archivetest

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Folder is an empty folder inside another, whose other content must never change.
type Folder struct {
	*os.Root
	outer string
}

const sentinel = "what was here before"

// NewFolder makes one.
func NewFolder(tb testing.TB) Folder {
	tb.Helper()
	outer := tb.TempDir()
	inner := filepath.Join(outer, "in", "tree")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"sentinel", "in/sentinel"} {
		if err := os.WriteFile(filepath.Join(outer, name), []byte(sentinel), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	root, err := os.OpenRoot(inner)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = root.Close() })
	return Folder{root, outer}
}

// CheckOutside fails when anything outside of the folder was changed.
func (f Folder) CheckOutside(tb testing.TB) {
	tb.Helper()
	var found []string
	err := filepath.WalkDir(f.outer, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(f.outer, name)
		if rel == filepath.Join("in", "tree") {
			return fs.SkipDir
		}
		if !e.IsDir() {
			raw, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel += "=" + string(raw)
		}
		found = append(found, rel)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	if diff := cmp.Diff([]string{".", "in", "in/sentinel=" + sentinel, "sentinel=" + sentinel}, found); diff != "" {
		tb.Fatalf("outside of the folder (-want +got):\n%s", diff)
	}
}

// List describes the tree: "name=content", "name/", "name -> target"; executables end
// with "*".
func (f Folder) List(tb testing.TB) []string {
	tb.Helper()
	var found []string
	err := fs.WalkDir(f.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := f.Lstat(name)
		if err != nil {
			return err
		}
		if extra := info.Mode() & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky | fs.ModeDevice | fs.ModeNamedPipe); extra != 0 {
			tb.Errorf("%s has mode %s", name, info.Mode())
		}
		switch {
		case e.IsDir():
			found = append(found, name+"/")
		case e.Type() == fs.ModeSymlink:
			target, err := f.Readlink(name)
			if err != nil {
				return err
			}
			found = append(found, name+" -> "+target)
		default:
			raw, err := f.ReadFile(name)
			if err != nil {
				return err
			}
			text := name + "=" + string(raw)
			if info.Mode()&0o100 != 0 {
				text += "*"
			}
			found = append(found, text)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return found
}

// CheckLinks follows every link as the kernel does: it stays inside or finds nothing.
func (f Folder) CheckLinks(tb testing.TB) {
	tb.Helper()
	for _, line := range f.List(tb) {
		link, _, ok := strings.Cut(line, " -> ")
		if !ok {
			continue
		}
		end, err := filepath.EvalSymlinks(filepath.Join(f.Name(), link))
		if err == nil && end != f.Name() && !strings.HasPrefix(end, f.Name()+"/") {
			tb.Fatalf("%s leads to %s", line, end)
		}
	}
}
