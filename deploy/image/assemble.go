package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// assemble returns an index of one image per binary. The layer that seldom changes is
// first.
func assemble(r recipe, from binaries) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	common, err := layer(r.files)
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	for _, b := range from {
		programs, err := r.programs(b)
		if err != nil {
			return nil, err
		}
		own, err := layer(programs)
		if err != nil {
			return nil, fmt.Errorf("make layer: %w", err)
		}
		img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			OS: b.platform.OS, Architecture: b.platform.Architecture, Variant: b.platform.Variant,
			Config: r.config, RootFS: v1.RootFS{Type: "layers"}, Created: v1.Time{Time: time.Unix(0, 0).UTC()},
		})
		if err == nil {
			img, err = mutate.AppendLayers(img, common, own)
		}
		if err != nil {
			return nil, fmt.Errorf("assemble the image of %s: %w", b.platform, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: b.platform}})
	}
	return index, nil
}

// programs reads the executables of one platform.
func (r recipe) programs(b binary) ([]file, error) {
	if len(b.paths) != len(r.executables) {
		return nil, fmt.Errorf("-binary %s names %d files; the image has %s", b.platform, len(b.paths), strings.Join(r.executables, " and "))
	}
	var files []file
	for i, path := range b.paths {
		if err := static(path); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(path) //nolint:gosec // the user names the file
		if err != nil {
			return nil, fmt.Errorf("read binary: %w", err)
		}
		files = append(files, file{r.executables[i], data, 0o755})
	}
	return files, nil
}

// static refuses an executable that needs a loader: the image has none.
func static(name string) error {
	f, err := elf.Open(name)
	if err != nil {
		return fmt.Errorf("%s is not an executable of Linux: %w", name, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically; build it with CGO_ENABLED=0", name)
		}
	}
	return nil
}

// layer returns a layer of the files and their folders. All of it is root's, and as old
// as time.
func layer(files []file) (v1.Layer, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	for _, f := range files {
		if err := addFile(w, f, made); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

func addFile(w *tar.Writer, f file, made map[string]bool) error {
	name := strings.TrimSuffix(f.name, "/")
	if parent := path.Dir(name); !made[parent] {
		if err := addFile(w, file{name: parent + "/", mode: 0o755}, made); err != nil {
			return err
		}
	}
	h := tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
	if name != f.name {
		h.Typeflag, made[name] = tar.TypeDir, true
	}
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(f.data)
	return err
}
