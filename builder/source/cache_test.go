package source

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func newCache(tb testing.TB, size int64) *cache {
	tb.Helper()
	c, err := openCache(tb.TempDir(), size)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.close() })
	return c
}

func put(tb testing.TB, c *cache, content string) string {
	tb.Helper()
	digest, err := c.put(tb.Context(), strings.NewReader(content), 1000)
	if err != nil {
		tb.Fatal(err)
	}
	return digest
}

func TestLeastRecentlyUsedIsEvicted(t *testing.T) {
	t.Parallel()
	c := newCache(t, 25)
	first, second := put(t, c, "1234567890"), put(t, c, "abcdefghij")
	old := time.Now().Add(-time.Hour)
	for i, digest := range []string{first, second} {
		at := old.Add(time.Duration(i) * time.Minute)
		if err := c.root.Chtimes(filepath.Join(blobDir, digest), at, at); err != nil {
			t.Fatal(err)
		}
	}
	f, err := c.open(t.Context(), first)
	if err != nil || f == nil {
		t.Fatalf("open() = %v, %v", f, err)
	}
	defer f.Close()
	third := put(t, c, "ABCDEFGHIJ")
	if !c.has(first) || c.has(second) || !c.has(third) {
		t.Errorf("first %t, second %t, third %t", c.has(first), c.has(second), c.has(third))
	}
	if err := c.drop(first); err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(f); string(raw) != "1234567890" || err != nil {
		t.Errorf("an open file reads %q, %v after it was evicted", raw, err)
	}
}

func TestChangedFilesAreNotServed(t *testing.T) {
	t.Parallel()
	c := newCache(t, 1000)
	digest := put(t, c, "content")
	if err := c.root.WriteFile(filepath.Join(blobDir, digest), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := c.open(t.Context(), digest); f != nil || err != nil || c.has(digest) {
		t.Errorf("open() = %v, %v, still there: %t", f, err, c.has(digest))
	}
}

func TestLeftoversOfDeadProcessesAreSwept(t *testing.T) {
	t.Parallel()
	c := newCache(t, 1000)
	// A file and a folder that nobody holds, and two that somebody does.
	for _, name := range []string{"dead", "dead-folder/x"} {
		name = filepath.Join(c.root.Name(), tempDir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir, remove, err := c.tempFolder()
	if err != nil {
		t.Fatal(err)
	}
	_, alive, removeFile, err := c.temp(false)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openCache(c.root.Name(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	left := func() []string {
		entries, err := os.ReadDir(filepath.Join(c.root.Name(), tempDir))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if got := left(); len(got) != 2 || !strings.Contains(strings.Join(got, " "), filepath.Base(alive)) || !strings.Contains(strings.Join(got, " "), filepath.Base(dir.Name())) {
		t.Errorf("left are %v", got)
	}
	remove()
	removeFile()
	if diff := cmp.Diff([]string(nil), left()); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestFailedDownloadsLeaveNothing(t *testing.T) {
	t.Parallel()
	c := newCache(t, 1000)
	_, err := c.put(t.Context(), io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrClosedPipe)), 1000)
	if err == nil || builder.KindOf(err) != builder.KindUnavailable {
		t.Errorf("got %v", err)
	}
	for _, dir := range []string{blobDir, tempDir} {
		if entries, err := os.ReadDir(filepath.Join(c.root.Name(), dir)); len(entries) > 0 || err != nil {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
}
