package archivetest

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Entry is one of an archive; Size, when set, is that of zeros in place of a body.
type Entry struct {
	Name string
	Kind byte // of tar; TypeReg is a file
	Link string
	Body string
	Size int64
	Mode int64
}

// Text is a file.
func Text(name, body string) Entry { return Entry{Name: name, Body: body, Mode: 0o644} }

func (e Entry) content() (io.Reader, int64) {
	if e.Size > 0 {
		return io.LimitReader(Zeros{}, e.Size), e.Size
	}
	return strings.NewReader(e.Body), int64(len(e.Body))
}

// writeTar writes headers as they are, the hostile ones too.
func writeTar(tb testing.TB, w io.Writer, entries []Entry) {
	tb.Helper()
	archive := tar.NewWriter(w)
	for _, e := range entries {
		body, size := e.content()
		kind := e.Kind
		if kind == 0 {
			kind = tar.TypeReg
		}
		if kind != tar.TypeReg {
			size = 0
		}
		h := &tar.Header{Name: e.Name, Typeflag: kind, Linkname: e.Link, Mode: e.Mode, Size: size, ModTime: time.Unix(1700000000, 0)}
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

func writeZip(tb testing.TB, w io.Writer, entries []Entry) {
	tb.Helper()
	archive := zip.NewWriter(w)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.Name, Method: zip.Deflate, Modified: time.Unix(1700000000, 0)}
		body, _ := e.content()
		h.SetMode(fs.FileMode(e.Mode))
		switch e.Kind {
		case tar.TypeSymlink:
			h.SetMode(fs.ModeSymlink | 0o777)
			body = strings.NewReader(e.Link)
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

// File makes an archive of the kind that its name says.
func File(tb testing.TB, name string, entries []Entry) *os.File {
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

// Zeros gives zeros without end.
type Zeros struct{}

// Read implements io.Reader.
func (Zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
