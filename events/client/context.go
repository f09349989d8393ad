package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// UploadContext stores an archive (tar, tar.gz or zip) for builds and returns the URL
// that goes into spec.build.source of the function. The same content is stored once,
// under its digest, and kept for as long as the operator says. What is no
// io.ReadSeeker is written to a temporary file first.
func (c *Client) UploadContext(ctx context.Context, r io.Reader) (url string, err error) {
	seeker, ok := r.(io.ReadSeeker)
	if !ok {
		spool, err := os.CreateTemp("", "kiln-context-*")
		if err != nil {
			return "", fmt.Errorf("upload context: %w", err)
		}
		defer func() {
			_ = spool.Close()
			_ = os.Remove(spool.Name())
		}()
		if _, err := io.Copy(spool, r); err != nil {
			return "", fmt.Errorf("upload context: %w", err)
		}
		seeker = spool
	}
	digest, extension, err := identify(seeker)
	if err != nil {
		return "", fmt.Errorf("upload context: %w", err)
	}
	store, err := c.bus.Contexts(ctx)
	if err != nil {
		return "", err
	}
	if err := store.Put(ctx, "sha256:"+digest, seeker); err != nil {
		return "", err
	}
	return ContextURL(digest, extension), nil
}

// ContextURL is the URL of an uploaded archive: its SHA-256 as 64 hex digits, and the
// extension of its kind, ".tar.gz", ".tar" or ".zip".
func ContextURL(digest, extension string) string { return "context://sha256-" + digest + extension }

// identify reads everything from the beginning, and goes back to it.
func identify(r io.ReadSeeker) (digest, extension string, err error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return "", "", err
	}
	sum := sha256.New()
	head := make([]byte, 4)
	n, err := io.ReadFull(io.TeeReader(r, sum), head)
	if errors.Is(err, io.EOF) {
		return "", "", errors.New("it is empty")
	}
	if err == nil {
		_, err = io.Copy(sum, r)
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", "", err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return "", "", err
	}
	extension = ".tar"
	switch {
	case bytes.HasPrefix(head[:n], []byte{0x1f, 0x8b}):
		extension = ".tar.gz"
	case bytes.HasPrefix(head[:n], []byte("PK")):
		extension = ".zip"
	}
	return hex.EncodeToString(sum.Sum(nil)), extension, nil
}
