package client_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestUploadedContextsHaveOneURL(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	store, err := bus.Contexts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for extension, content := range map[string]string{".tar.gz": "\x1f\x8b and more", ".zip": "PK\x03\x04 and more", ".tar": "job.py and more"} {
		first, err := c.UploadContext(t.Context(), strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.UploadContext(t.Context(), io.MultiReader(strings.NewReader(content)))
		if err != nil || first != second || !strings.HasPrefix(first, "context://sha256-") || !strings.HasSuffix(first, extension) {
			t.Errorf("URLs are %s and %s, %v", first, second, err)
		}
		digest := strings.TrimSuffix(strings.TrimPrefix(first, "context://sha256-"), extension)
		r, err := store.Open(t.Context(), "sha256:"+digest)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(r); string(raw) != content || err != nil {
			t.Errorf("stored is %q, %v", raw, err)
		}
		_ = r.Close()
	}
	if url, err := c.UploadContext(t.Context(), bytes.NewReader(nil)); err == nil {
		t.Errorf("nothing at all is stored as %s", url)
	}
}
