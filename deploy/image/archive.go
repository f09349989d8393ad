package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// writeArchive writes the index as an OCI layout in a tar file, under a name that
// containerd and skopeo find it by.
func writeArchive(target, title string, index v1.ImageIndex) (err error) {
	dir, err := os.MkdirTemp("", "kiln-layout-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := written.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name": title, "org.opencontainers.image.ref.name": title,
	})); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil { //nolint:gosec // the caller names the file
		return err
	}
	out, err := os.Create(filepath.Clean(target)) //nolint:gosec // the same
	if err != nil {
		return err
	}
	return errors.Join(pack(out, dir), out.Close())
}

// pack writes the files of a folder without what changes from run to run.
func pack(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		h := tar.Header{Name: name, Mode: 0o644, Size: info.Size(), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return errors.Join(err, w.Close())
}
