package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The ids of the container are these on the machine: root inside is nobody outside.
const (
	firstID = 100000
	idCount = 65536
)

// runImage pulls an image and runs a command in it, as root of a user namespace,
// without network and capabilities, on a read-only root.
func runImage(ctx context.Context, args []string, out io.Writer) (err error) {
	rest, err := parse(flag.NewFlagSet("run-image", flag.ContinueOnError), args, -2)
	if err != nil {
		return err
	}
	runtime, err := ociRuntime()
	if err != nil {
		return err
	}
	img, err := pull(ctx, rest[0])
	if err != nil {
		return err
	}
	bundle, err := os.MkdirTemp("", "kiln-image-")
	if err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bundle)) }()
	if err := writeBundle(bundle, img, rest[1:]); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	id := filepath.Base(bundle)
	cmd := exec.CommandContext(ctx, runtime, "run", "--bundle", bundle, id) //nolint:gosec // what to run is the argument
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		// A runtime that was stopped in mid-run leaves its container.
		_ = exec.CommandContext(context.WithoutCancel(ctx), runtime, "delete", "--force", id).Run() //nolint:gosec // the same
		return fmt.Errorf("run %s: %w", strings.Join(rest[1:], " "), err)
	}
	return nil
}

func ociRuntime() (string, error) {
	for _, candidate := range []string{"runc", "crun"} {
		if found, err := exec.LookPath(candidate); err == nil {
			return found, nil
		}
	}
	return "", errors.New("no OCI runtime on PATH: install runc or crun")
}

func pull(ctx context.Context, ref string) (v1.Image, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("parse reference: %w", err)
	}
	img, err := remote.Image(parsed, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	return img, nil
}

// writeBundle makes dir an OCI bundle: config.json and the image's files in rootfs.
func writeBundle(dir string, img v1.Image, command []string) error {
	// The container's root must be able to walk through, not to list.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // walked by the mapped root
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("read image configuration: %w", err)
	}
	text, err := json.Marshal(containerSpec(config.Config.Env, command))
	if err != nil {
		return fmt.Errorf("encode container: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		return err
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil { //nolint:gosec // the container's root
		return err
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if err := root.Lchown(".", firstID, firstID); err != nil {
		return err
	}
	files := mutate.Extract(img)
	defer func() { _ = files.Close() }()
	return unpack(root, tar.NewReader(files))
}

// containerSpec describes a container that can compute and print, and nothing else.
func containerSpec(env, command []string) specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: firstID, Size: idCount}}
	memory, pids := int64(512<<20), int64(256)
	return specs.Spec{
		Version:  "1.0.2",
		Hostname: "image",
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: command, Cwd: "/", Env: append(env, "HOME=/tmp"), NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", "size=64m"}},
		},
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.UserNamespace},
				{Type: specs.NetworkNamespace},
			},
			Resources:     &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// unpack writes a root file system below root, owned by the container's ids. Device
// files are left out; no name leads outside of root.
func unpack(root *os.Root, archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		if err := unpackOne(root, h, archive); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func unpackOne(root *os.Root, h *tar.Header, data io.Reader) error {
	file := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if file == "" {
		return nil
	}
	if err := root.MkdirAll(path.Dir(file), 0o755); err != nil {
		return err
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = root.Mkdir(file, 0o755); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	case tar.TypeReg:
		err = writeFile(root, file, data)
	case tar.TypeSymlink:
		err = root.Symlink(h.Linkname, file)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), file)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := root.Lchown(file, firstID+h.Uid%idCount, firstID+h.Gid%idCount); err != nil || h.Typeflag == tar.TypeSymlink {
		return err
	}
	return root.Chmod(file, h.FileInfo().Mode().Perm())
}

func writeFile(root *os.Root, file string, data io.Reader) error {
	f, err := root.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, data)
	return errors.Join(err, f.Close())
}
