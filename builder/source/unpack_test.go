package source

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

// entry is one of an archive; size, when set, is that of zeros in place of a body.
type entry struct {
	name string
	kind byte // of tar; TypeReg is a file
	link string
	body string
	size int64
	mode int64
}

func file(name, body string) entry { return entry{name: name, body: body, mode: 0o644} }

func (e entry) content() (io.Reader, int64) {
	if e.size > 0 {
		return io.LimitReader(zeros{}, e.size), e.size
	}
	return strings.NewReader(e.body), int64(len(e.body))
}

// writeTar writes headers as they are, the hostile ones too.
func writeTar(tb testing.TB, w io.Writer, entries []entry) {
	tb.Helper()
	archive := tar.NewWriter(w)
	for _, e := range entries {
		body, size := e.content()
		kind := e.kind
		if kind == 0 {
			kind = tar.TypeReg
		}
		if kind != tar.TypeReg {
			size = 0
		}
		h := &tar.Header{Name: e.name, Typeflag: kind, Linkname: e.link, Mode: e.mode, Size: size, ModTime: time.Unix(1700000000, 0)}
		if err := archive.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if size > 0 {
			if _, err := io.Copy(archive, body); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := archive.Close(); err != nil {
		tb.Fatal(err)
	}
}

func writeZip(tb testing.TB, w io.Writer, entries []entry) {
	tb.Helper()
	archive := zip.NewWriter(w)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: time.Unix(1700000000, 0)}
		body, _ := e.content()
		h.SetMode(fs.FileMode(e.mode))
		switch e.kind {
		case tar.TypeSymlink:
			h.SetMode(fs.ModeSymlink | 0o777)
			body = strings.NewReader(e.link)
		case tar.TypeBlock:
			h.SetMode(fs.ModeDevice | 0o600)
		case tar.TypeFifo:
			h.SetMode(fs.ModeNamedPipe | 0o600)
		}
		f, err := archive.CreateHeader(h)
		if err == nil {
			_, err = io.Copy(f, body)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		tb.Fatal(err)
	}
}

// archiveFile makes an archive of the kind that its name says.
func archiveFile(tb testing.TB, name string, entries []entry) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), name))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	switch {
	case strings.HasSuffix(name, ".zip"):
		writeZip(tb, f, entries)
	case strings.HasSuffix(name, ".gz"):
		z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed)
		writeTar(tb, z, entries)
		if err := z.Close(); err != nil {
			tb.Fatal(err)
		}
	default:
		writeTar(tb, f, entries)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		tb.Fatal(err)
	}
	return f
}

func archiveNames() []string { return []string{"a.tar.gz", "a.tar", "a.zip"} }

func TestArchivesOfEveryKindAreUnpackedAlike(t *testing.T) {
	t.Parallel()
	for _, name := range archiveNames() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newFolder(t)
			f := archiveFile(t, name, []entry{
				{name: "top/", kind: tar.TypeDir, mode: 0o755},
				file("top/job.py", "print()"),
				{name: "top/run.sh", body: "#!/bin/sh", mode: 0o755},
				{name: "top/link", kind: tar.TypeSymlink, link: "job.py"},
				file("top/job.py", "print(2)"),
			})
			if err := unpack(f, newTree(t.Context(), dir.Root, Limits{}.withDefaults())); err != nil {
				t.Fatal(err)
			}
			want := []string{"top/", "top/job.py=print(2)", "top/link -> job.py", "top/run.sh=#!/bin/sh*"}
			if diff := cmp.Diff(want, dir.list(t)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	t.Parallel()
	limits := Limits{Unpacked: 80 << 20, Entries: 1000}.withDefaults()
	for name, tc := range map[string]struct {
		entries []entry
		says    string
	}{
		"traversal":       {[]entry{file("a", "x"), file("../sentinel", "x")}, "leads out"},
		"absolute":        {[]entry{file("/tmp/x", "x")}, "absolute"},
		"symlink out":     {[]entry{{name: "l", kind: tar.TypeSymlink, link: "../sentinel"}}, "leads out"},
		"chain out":       {[]entry{{name: "a", kind: tar.TypeSymlink, link: "."}, {name: "b", kind: tar.TypeSymlink, link: "a/.."}}, "leads out"},
		"through a link":  {[]entry{{name: "a", kind: tar.TypeSymlink, link: ".."}, file("a/sentinel", "x")}, "something else"},
		"device":          {[]entry{{name: "sda", kind: tar.TypeBlock}}, "sda"},
		"pipe":            {[]entry{{name: "p", kind: tar.TypeFifo}}, `"p"`},
		"large":           {[]entry{{name: "zeros", size: 81 << 20}}, "80 MiB"},
		"bomb":            {[]entry{{name: "zeros", size: 75 << 20}}, "200 times"},
		"entries":         {slices.Repeat([]entry{file("a", "x")}, 1001), "limit of 1000"},
		"64 kB name":      {[]entry{file(strings.Repeat("n/", 30<<10)+"n", "x")}, "longer"},
		"not UTF-8":       {[]entry{file("a\xff\xfe", "x")}, "UTF-8"},
		"empty":           {nil, "empty"},
		"hard link out":   {[]entry{{name: "l", kind: tar.TypeLink, link: "../sentinel"}}, "leads out"},
		"char device":     {[]entry{{name: "null", kind: tar.TypeChar}}, "null"},
		"unknown":         {[]entry{{name: "x", kind: 'Q'}}, "unknown type"},
		"contiguous file": {[]entry{{name: "x", kind: tar.TypeCont}}, "unknown type"},
	} {
		for _, archive := range archiveNames() {
			tarOnly := slices.Contains([]string{"hard link out", "char device", "unknown", "contiguous file"}, name)
			// In a zip its ratio is seen first.
			if (tarOnly || name == "large") && archive == "a.zip" || name == "bomb" && archive == "a.tar" {
				continue
			}
			t.Run(name+" in "+archive, func(t *testing.T) {
				t.Parallel()
				dir := newFolder(t)
				err := unpack(archiveFile(t, archive, tc.entries), newTree(t.Context(), dir.Root, limits))
				if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), tc.says) {
					t.Errorf("got %v, want an invalid_request that says %q", err, tc.says)
				}
				dir.checkOutside(t)
			})
		}
	}
}

func TestDamagedArchivesAreTheRequesters(t *testing.T) {
	t.Parallel()
	for _, name := range archiveNames() {
		whole, err := io.ReadAll(archiveFile(t, name, []entry{file("a", strings.Repeat("text ", 20000)), file("b", "x")}))
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(whole)
		for i := len(changed) / 3; i < len(changed)/2; i++ {
			changed[i] ^= 0x5a
		}
		for what, raw := range map[string][]byte{"cut": whole[:len(whole)/2], "changed": changed, "text": []byte("<html>404</html>"), "nothing": {}} {
			if what == "changed" && name == "a.tar" {
				continue // has no checksum over its content
			}
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				f, err := os.Create(filepath.Join(t.TempDir(), "f"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.Write(raw); err != nil {
					t.Fatal(err)
				}
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				err = unpack(f, newTree(t.Context(), newFolder(t).Root, Limits{}.withDefaults()))
				says := "damaged"
				if len(raw) == 0 {
					says = "empty"
				}
				if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), says) {
					t.Errorf("got %v, want an invalid_request that says %s", err, says)
				}
			})
		}
	}
}

func TestEncryptedZipIsRefused(t *testing.T) {
	t.Parallel()
	f := archiveFile(t, "a.zip", []entry{file("a", "x")})
	raw, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(raw, []byte("PK\x01\x02"))
	raw[i+8] |= 1
	if _, err := f.WriteAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	err = unpack(f, newTree(t.Context(), nil, Limits{}.withDefaults()))
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), "encrypted") {
		t.Errorf("got %v", err)
	}
}

func TestNamesAndContentsDecideWhatIsUnpacked(t *testing.T) {
	t.Parallel()
	archive := []entry{file("a", "x")}
	for name, tc := range map[string]struct {
		content string
		want    bool
		says    string
	}{
		"x.tar.gz": {"a.tar.gz", true, ""}, "X.TGZ": {"a.tar.gz", true, ""}, "x.tar": {"a.tar", true, ""}, "x.zip": {"a.zip", true, ""},
		"tarball": {"a.tar.gz", true, ""}, "v1.2.3": {"a.zip", true, ""}, "main": {"a.tar", true, ""},
		"x.whl": {"a.zip", false, ""}, "x.npz": {"a.zip", false, ""}, "job.py": {"", false, ""}, "data.gz": {"a.tar.gz", false, ""},
		"LICENSE":  {"", false, ""},
		"x.tar.xz": {"", false, "not supported"}, "x.7z": {"", false, "not supported"},
	} {
		content := archiveFile(t, "plain.tar", nil)
		if tc.content != "" {
			content = archiveFile(t, tc.content, archive)
		}
		got, err := isArchive(name, content)
		if got != tc.want || (err != nil) != (tc.says != "") || (err != nil && !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("isArchive(%s) = %t, %v; want %t, %q", name, got, err, tc.want, tc.says)
		}
	}
}

// fuzzUnpack unpacks anything, and checks that nothing else is changed.
func fuzzUnpack(f *testing.F, names ...string) {
	f.Helper()
	for _, name := range names {
		for _, entries := range [][]entry{
			{file("a/b", "x"), {name: "l", kind: tar.TypeSymlink, link: "a/b"}, {name: "a/", kind: tar.TypeDir, mode: 0o755}},
			{file("../x", "y"), {name: "l", kind: tar.TypeSymlink, link: ".."}, file("l/sentinel", "x")},
		} {
			raw, err := io.ReadAll(archiveFile(f, name, entries))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	limits := Limits{Unpacked: 1 << 20, Entries: 100, Path: 200}.withDefaults()
	f.Fuzz(func(t *testing.T, raw []byte) {
		name := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		archive, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer archive.Close()
		dir := newFolder(t)
		err = unpack(archive, newTree(t.Context(), dir.Root, limits))
		dir.checkOutside(t)
		if err != nil {
			return
		}
		dir.checkLinks(t)
	})
}

func FuzzUntar(f *testing.F) { fuzzUnpack(f, "a.tar", "a.tar.gz") }

func FuzzUnzip(f *testing.F) { fuzzUnpack(f, "a.zip") }
