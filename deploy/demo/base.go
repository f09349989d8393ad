package main

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// runPushBase pushes an image of one layer, a tar archive that may be gzipped.
func runPushBase(ctx context.Context, args []string, out io.Writer) error {
	rest, err := parse(flag.NewFlagSet("push-base", flag.ContinueOnError), args, 2)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(rest[1])
	if err != nil {
		return fmt.Errorf("read layer %s: %w", rest[1], err)
	}
	return push(ctx, rest[0], layer, out)
}

// runPushBusybox pushes the smallest image that can run a shell command.
func runPushBusybox(ctx context.Context, args []string, out io.Writer) error {
	rest, err := parse(flag.NewFlagSet("push-busybox", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("read busybox (apt-get install busybox-static): %w", err)
	}
	archive, err := busyboxRoot(busybox)
	if err != nil {
		return fmt.Errorf("pack busybox: %w", err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		return fmt.Errorf("make layer: %w", err)
	}
	return push(ctx, rest[0], layer, out)
}

// busyboxRoot is a tar archive of a root with busybox under its usual names.
func busyboxRoot(busybox []byte) ([]byte, error) {
	applets := strings.Fields("sh cat cp date echo env grep id ls mkdir mv rm sed sleep touch uname wc")
	headers := append(make([]tar.Header, 0, 4+len(applets)), []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
	}...)
	for _, applet := range applets {
		headers = append(headers, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := range headers {
		if err := tw.WriteHeader(&headers[i]); err != nil {
			return nil, err
		}
		if headers[i].Typeflag == tar.TypeReg {
			if _, err := tw.Write(busybox); err != nil {
				return nil, err
			}
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// push writes an image of the layer and prints "DIGEST BYTES".
func push(ctx context.Context, ref string, layer v1.Layer, out io.Writer) error {
	// Plain HTTP for loopback only; the library decides that by the host.
	target, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("parse reference: %w", err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	})
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	if err := remote.Write(target, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("read digest: %w", err)
	}
	size, err := layer.Size()
	if err != nil {
		return fmt.Errorf("read size: %w", err)
	}
	_, err = fmt.Fprintf(out, "%s %d\n", digest, size)
	return err
}
