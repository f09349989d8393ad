package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// unpackFactor is how many bytes a compressed byte of a layer is taken to unpack to,
// and headroom what a build is taken to add.
const (
	unpackFactor = 3
	headroom     = 2 * gib
)

// place says where a build root is. size bounds it; on tmpfs it is also reserved.
type place struct {
	tmpfs bool
	size  int64
}

// choosePlace decides by the size of the base image and what is left of the budget.
func (e *Engine) choosePlace(plan builder.Plan) (place, func(), error) {
	nothing := func() {}
	disk := place{size: plan.Limits.Disk}
	if e.cfg.Root == RootDisk {
		return disk, nothing, nil
	}
	size := min(plan.Base.Size*unpackFactor+headroom, plan.Limits.Disk)
	known := plan.Base.Size > 0 || plan.Base.Ref == builder.Scratch
	e.mu.Lock()
	defer e.mu.Unlock()
	left := e.cfg.TmpfsBudget - e.tmpfs
	switch {
	case e.cfg.Root == RootTmpfs && left < min(size, 64*mib):
		return place{}, nil, unavailable("choosing a build root", errors.New("the tmpfs budget is used up by other builds"))
	case e.cfg.Root == RootTmpfs:
		size = min(size, left)
	case !known || size > left:
		return disk, nothing, nil
	}
	e.tmpfs += size
	return place{tmpfs: true, size: size}, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.tmpfs -= size
	}, nil
}

// mount mounts the build root on the engine's mount point. It runs in the build's
// mount namespace.
func (p place) mount(dir, target string) error {
	if p.tmpfs {
		options := fmt.Sprintf("mode=0755,size=%d", p.size)
		if err := unix.Mount("kiln", target, "tmpfs", unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
		return nil
	}
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount build root: %w", err)
	}
	return nil
}

// writer writes files for the container below a root; the first error stays.
type writer struct {
	root *os.Root
	// owner is the host's id of the container's root.
	owner int
	err   error
}

func (w *writer) dir(name string, mode os.FileMode) {
	if w.err == nil {
		w.err = w.root.MkdirAll(name, 0o755)
	}
	w.own(name, mode)
}

func (w *writer) file(name string, data []byte, mode os.FileMode) {
	if w.err == nil {
		w.err = w.root.WriteFile(name, data, 0o600)
	}
	w.own(name, mode)
}

func (w *writer) own(name string, mode os.FileMode) {
	if w.err == nil {
		w.err = w.root.Lchown(name, w.owner, w.owner)
	}
	if w.err == nil {
		w.err = w.root.Chmod(name, mode)
	}
}

// fill writes what the executor finds in its root.
func fill(root *os.Root, plan builder.Plan, owner int) error {
	w := &writer{root: root, owner: owner}
	w.dir(".", 0o755)
	for _, dir := range []string{"dev", "etc", "kaniko", "kaniko/build", rel(kaniko.Context), "proc", "sys"} {
		w.dir(dir, 0o755)
	}
	w.dir("tmp", 0o777|os.ModeSticky)
	w.file(rel(kaniko.Executor), nil, 0o644)
	w.file(rel(kaniko.Dockerfile), []byte(plan.Dockerfile), 0o644)
	for _, f := range plan.Context {
		if !filepath.IsLocal(filepath.FromSlash(f.Name)) || path.Clean(f.Name) != f.Name || f.Name == "." {
			return builder.Errorf(builder.KindInvalidRequest, "writing the build context", "%q is not a clean relative path", f.Name)
		}
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			defer w.own(path.Join(rel(kaniko.Context), dir), 0o755)
		}
		if w.err == nil {
			w.err = root.MkdirAll(path.Join(rel(kaniko.Context), path.Dir(f.Name)), 0o755)
		}
		w.file(path.Join(rel(kaniko.Context), f.Name), f.Data, os.FileMode(f.Mode).Perm())
	}
	return w.err
}

func rel(name string) string { return strings.TrimPrefix(name, "/") }

// bundleFiles writes what is mounted into the container from the build's folder.
func bundleFiles(root *os.Root, owner int, registries []builder.File) error {
	// Without a resolver the build reaches what it names by address.
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	guest := &writer{root: root, owner: owner}
	guest.file("hosts", hostsFile(hostname), 0o644)
	guest.file("resolv.conf", resolv, 0o644)
	host := &writer{root: root}
	host.dir("guarded", 0o755)
	host.file("guarded/ca.crt", certificates(), 0o644)
	for _, f := range registries {
		guest.file(path.Join("guarded", f.Name), f.Data, os.FileMode(f.Mode))
	}
	return errors.Join(guest.err, host.err)
}

// hostsFile is this machine's, with the container's own name.
func hostsFile(name string) []byte {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || !strings.Contains(string(hosts), "localhost") {
		hosts = append(hosts, "\n127.0.0.1 localhost\n::1 localhost"...)
	}
	return append(hosts, "\n127.0.0.1 "+name+"\n"...)
}

// certificates returns the host's bundle of trusted certificates: the first that
// exists of the places where distributions have it.
func certificates() []byte {
	for _, file := range []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	} {
		if raw, err := os.ReadFile(file); err == nil { //nolint:gosec // one of the names above
			return raw
		}
	}
	return nil
}
