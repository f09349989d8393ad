package sandbox

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/builder/run/launcher"
)

// runHostname is that of every run's container.
const runHostname = "kiln-run"

// defaultPath is what images without a PATH get.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// launcherThreads is how many of the processes that a container may have are the
// launcher's own.
const launcherThreads = 16

// guestUser is who a process runs as, by the container's ids.
type guestUser struct {
	uid, gid int
	groups   []int
}

// userOf finds the image's user in its own files.
func userOf(image *unpacked) (guestUser, error) {
	root, err := os.OpenRoot(image.dir)
	if err != nil {
		return guestUser{}, err
	}
	defer root.Close()
	found, err := user.GetExecUser(image.config.User, &user.ExecUser{}, small(root, "etc/passwd"), small(root, "etc/group"))
	if err == nil && (found.Uid >= mapped || found.Gid >= mapped) {
		err = errors.New("ids above 65535 are not mapped")
	}
	if err != nil {
		return guestUser{}, builder.Errorf(builder.KindInvalidRequest, "finding the image's user", "%.80q: %w", image.config.User, err)
	}
	u := guestUser{uid: found.Uid, gid: found.Gid}
	for _, id := range found.Sgids {
		if id < mapped {
			u.groups = append(u.groups, id)
		}
	}
	return u, nil
}

// small reads a file of an image of at most 1 MiB; what cannot be read is empty.
func small(root *os.Root, name string) io.Reader {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return strings.NewReader("")
	}
	defer f.Close()
	raw, _ := io.ReadAll(io.LimitReader(f, mib))
	return bytes.NewReader(raw)
}

// guestSpec is what the launcher does.
func guestSpec(plan run.Plan, config v1.Config) launcher.Spec {
	s := run.LauncherSpec(plan, slices.Concat(config.Entrypoint, config.Cmd))
	s.Pipe = true
	return s
}

// spec returns the container's specification.
func (a attempt) spec(plan run.Plan, image *unpacked, u guestUser) (*specs.Spec, error) {
	r := a.runner
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	b := bundle{
		firstID: r.cfg.SubUIDBase, limits: plan.Limits, memory: plan.Limits.Memory, swap: r.cgroups.limitsSwap(),
		cgroup: filepath.Join(r.cgroups.path, a.container()), root: r.mountPoint,
		hosts: a.path(bundleDir + "/hosts"), resolv: a.path(bundleDir + "/resolv.conf"), files: min(files.Max, 65536),
	}
	b.limits.PIDs += launcherThreads
	s := b.container(runHostname)
	s.Process = &specs.Process{
		Args:            []string{launcher.Program},
		Env:             environment(plan, image.config),
		Cwd:             workdir(plan, image.config),
		User:            specs.User{UID: uint32(u.uid), GID: uint32(u.gid)}, //nolint:gosec // below 65536
		NoNewPrivileges: true,
		Capabilities:    &specs.LinuxCapabilities{},
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Hard: b.files, Soft: b.files},
			{Type: "RLIMIT_CORE"},
			// Holds even while nobody watches the disk.
			{Type: "RLIMIT_FSIZE", Hard: uint64(plan.Limits.Disk), Soft: uint64(plan.Limits.Disk)}, //nolint:gosec // not negative
		},
	}
	for _, id := range u.groups {
		s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, uint32(id)) //nolint:gosec // below 65536
	}
	s.Mounts = append(b.system(plan.Limits.Memory), a.mounts(plan)...)
	return s, nil
}

// mounts are those of the run itself.
func (a attempt) mounts(plan run.Plan) []specs.Mount {
	readonly := []string{"bind", "ro", "nosuid", "nodev"}
	mounts := []specs.Mount{
		{Destination: launcher.Dir, Type: "bind", Source: a.path(guestDir), Options: readonly},
		{Destination: launcher.Program, Type: "bind", Source: a.runner.launcher, Options: readonly},
		{Destination: launcher.Out, Type: "bind", Source: a.path(inGuest(launcher.Out)), Options: []string{"bind", "rw", "nosuid", "nodev"}},
	}
	if plan.Source != nil {
		mounts = append(mounts, specs.Mount{
			Destination: plan.Source.Target, Type: "bind", Source: a.path(sourceDir), Options: []string{"bind", "rw", "nosuid", "nodev"},
		})
	}
	return mounts
}

// environment returns the image's variables and, over them, the plan's.
func environment(plan run.Plan, config v1.Config) []string {
	env := append([]string{defaultPath}, config.Env...)
	for _, v := range slices.Concat(plan.Env, plan.Secrets) {
		env = append(env, v.Name+"="+v.Value)
	}
	last := make(map[string]int, len(env))
	name := func(entry string) string { n, _, _ := strings.Cut(entry, "="); return n }
	for i, entry := range env {
		last[name(entry)] = i
	}
	kept := env[:0]
	for i, entry := range env {
		if last[name(entry)] == i {
			kept = append(kept, entry)
		}
	}
	return kept
}

func workdir(plan run.Plan, config v1.Config) string {
	dir := plan.Workdir
	if dir == "" {
		dir = config.WorkingDir
	}
	return path.Join("/", dir)
}

// used is how many bytes of disk an attempt takes; counting stops above the limit.
func (a attempt) used(limit int64) int64 {
	var total int64
	for _, name := range []string{upperDir, sourceDir, inGuest(launcher.Out)} {
		if root, err := a.runner.state.root.OpenRoot(a.file(name)); err == nil {
			total += usage(root, limit)
			_ = root.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			continue
		}
	}
	if info, err := a.runner.state.root.Stat(a.file(logFile)); err == nil {
		total += info.Size()
	}
	return total
}
