package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kiln/builder/source/archive"
	"kiln/events"
	"kiln/events/client"
)

// LocalSource is a folder or archive of this machine, packed for upload.
type LocalSource struct {
	// Path is where it was, File what was made of it.
	Path string
	File *os.File
	url  string
	size int64
}

// Close removes what was packed. It does nothing to a nil LocalSource.
func (l *LocalSource) Close() {
	if l != nil {
		_ = l.File.Close()
		_ = os.Remove(l.File.Name())
	}
}

// Open implements source.Contexts for a plan that is made on this machine.
func (l *LocalSource) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	if l == nil || !strings.HasPrefix(l.url, client.ContextURL(strings.TrimPrefix(digest, "sha256:"), "")) {
		return nil, fs.ErrNotExist
	}
	return os.Open(l.File.Name())
}

// PackSource packs what --source or the function's own spec.build.source names, when
// it is a path, and lets the function name the upload instead. A path in the function
// is relative to its file; one on standard input has no folder, and is left alone. It
// returns nil when there is nothing to pack.
func (r RequestFlags) PackSource(request *events.BuildRequest) (*LocalSource, error) {
	object, build, err := buildOf(request.Function)
	if err != nil {
		return nil, err
	}
	onRun, _ := build["load_source_on_run"].(bool)
	path, from := r.LocalSource, "--source"
	if path != "" && onRun {
		return nil, errors.New("--source puts code into the image, and the function loads it when it runs: set spec.build.load_source_on_run to false")
	}
	if own, _ := build["source"].(string); path == "" && archive.IsPath(own) && !onRun && r.File != "-" && r.File != "" {
		from = "spec.build.source"
		if path = own; !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(r.File), path)
		}
	}
	if path == "" {
		return nil, nil
	}
	local, err := pack(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	build["source"] = local.url
	if request.Function, err = json.Marshal(object); err != nil {
		local.Close()
		return nil, fmt.Errorf("encode the function: %w", err)
	}
	return local, nil
}

// buildOf returns a function object and its spec.build, which is made if it is not
// there.
func buildOf(function json.RawMessage) (object, build map[string]any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(function))
	decoder.UseNumber()
	if err := decoder.Decode(&object); err != nil {
		return nil, nil, fmt.Errorf("read the function: %w", err)
	}
	at := object
	for _, key := range []string{"spec", "build"} {
		next, ok := at[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[key] = next
		}
		at = next
	}
	return object, at, nil
}

// pack makes an archive of a folder, or checks one that is there.
func pack(path string) (*LocalSource, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "kiln-source-*")
	if err != nil {
		return nil, fmt.Errorf("pack source: %w", err)
	}
	local := &LocalSource{Path: path, File: file}
	var digest string
	extension := ".tar.gz"
	if info.IsDir() {
		digest, local.size, err = archive.Pack(path, file)
	} else {
		digest, local.size, extension, err = archive.PackFile(path, file)
	}
	if err != nil {
		local.Close()
		return nil, err
	}
	local.url = client.ContextURL(strings.TrimPrefix(digest, "sha256:"), extension)
	return local, nil
}
