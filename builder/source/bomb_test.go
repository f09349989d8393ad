package source

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"kiln/builder"
	"kiln/builder/source/archivetest"
)

// bombs are archives of a few megabytes that want to be much more.
func bombs(tb testing.TB) map[string]struct {
	raw  []byte
	says string
} {
	tb.Helper()
	const chunk = 1 << 20
	member := func(write func(io.Writer)) []byte {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		write(z)
		_ = z.Close()
		return b.Bytes()
	}
	header := member(func(w io.Writer) {
		_ = tar.NewWriter(w).WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: 10 << 30, Format: tar.FormatGNU})
	})
	block := member(func(w io.Writer) { _, _ = io.CopyN(w, archivetest.Zeros{}, chunk) })
	thousand := member(func(w io.Writer) {
		archive := tar.NewWriter(w)
		for i := range 1000 {
			_ = archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("%d/", i), Typeflag: tar.TypeDir, Mode: 0o755})
		}
		_ = archive.Flush()
	})
	return map[string]struct {
		raw  []byte
		says string
	}{
		"announced.tar.gz": {slices.Concat(header, bytes.Repeat(block, 10240)), "8192 MiB"},
		"zeros.zip":        {zipBomb(tb), "200 times"},
		"entries.tar.gz":   {bytes.Repeat(thousand, 1000), "limit of 20000"},
		"entries.zip":      {zipOfMillion(), "limit of 20000"},
	}
}

// zipBomb announces 7 GiB, which is below the limit, and holds 10 GiB.
func zipBomb(tb testing.TB) []byte {
	tb.Helper()
	var deflated, out bytes.Buffer
	z, _ := flate.NewWriter(&deflated, flate.BestSpeed)
	_, _ = io.CopyN(z, archivetest.Zeros{}, 4<<20)
	_ = z.Flush()
	archive := zip.NewWriter(&out)
	w, err := archive.CreateRaw(&zip.FileHeader{
		Name: "zeros", Method: zip.Deflate, CompressedSize64: uint64(deflated.Len() * 2560), UncompressedSize64: 7 << 30,
	})
	if err == nil {
		_, err = w.Write(bytes.Repeat(deflated.Bytes(), 2560))
	}
	if err = errors.Join(err, archive.Close()); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// zipOfMillion has one file and a directory that names it a million times.
func zipOfMillion() []byte {
	const count = 1_000_000
	le := binary.LittleEndian
	local := append([]byte("PK\x03\x04"), make([]byte, 26)...)
	le.PutUint16(local[26:], 1)
	local = append(local, 'a')
	record := append([]byte("PK\x01\x02"), make([]byte, 42)...)
	le.PutUint16(record[28:], 1)
	record = append(record, 'a')
	out := slices.Concat(local, bytes.Repeat(record, count))
	end64 := append([]byte("PK\x06\x06"), make([]byte, 52)...)
	le.PutUint64(end64[4:], 44)
	le.PutUint64(end64[24:], count)
	le.PutUint64(end64[32:], count)
	le.PutUint64(end64[40:], uint64(count*len(record)))
	le.PutUint64(end64[48:], uint64(len(local)))
	locator := append([]byte("PK\x06\x07"), make([]byte, 16)...)
	le.PutUint64(locator[8:], uint64(len(out)))
	le.PutUint32(locator[16:], 1)
	end := append([]byte("PK\x05\x06"), make([]byte, 18)...)
	for i := 8; i < 20; i++ {
		end[i] = 0xff
	}
	return slices.Concat(out, end64, locator, end)
}

func TestBombsAreRefusedAndLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	for name, bomb := range bombs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, map[string][]byte{"/" + name: bomb.raw})
			s, dir := newSources(t, func(c *Config) { c.Limits.Entries = 20_000 }), archivetest.NewFolder(t)
			pinned, err := s.Pin(t.Context(), server.URL+"/"+name, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Fetch(t.Context(), server.URL+"/"+name, pinned, nil, dir.Root)
			if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), bomb.says) {
				t.Errorf("%s: %v, want %q", builder.KindOf(err), err, bomb.says)
			}
			if left := append(dir.List(t), cachedFiles(t, s)...); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			dir.CheckOutside(t)
		})
	}
}
