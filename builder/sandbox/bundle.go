package sandbox

import (
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// guarded is where the container sees what commands must not replace: a folder
// whose every parent is a mount point, so that it cannot be renamed away.
const guarded = "/dev/kiln"

// hostname of every container.
const hostname = "kiln-build"

// digestFile is where the executor leaves the digest, relative to the root.
const digestFile = "kaniko/digest"

// bundle is what the specification of a container is made of.
type bundle struct {
	// args and env of the executor.
	args, env []string
	// root is the path of the build root; host paths are those of bind mounts.
	root, executor, guarded, hosts, resolv string
	// cgroup is the path of the container's cgroup.
	cgroup string
	// firstID is the host id of the container's root; ids is the length of the range.
	firstID uint32
	limits  builder.Limits
	// memory is the limit of the cgroup, tmpfs included; swap says that the host can
	// limit swap.
	memory int64
	swap   bool
	// files is the limit of open files, at most that of this process.
	files uint64
}

// capabilities are what package managers need of root; none reaches beyond the
// container's own ids.
func capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
		"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETPCAP",
	}
}

// gained is the capability that the executor gets by being executed as root, and
// not before. A process that gains capabilities is protected by the kernel: nobody
// without CAP_SYS_PTRACE, so nobody in the container, reads its memory, environment
// or descriptors. Commands start with what the executor has: they gain nothing.
const gained = "CAP_AUDIT_WRITE"

// spec returns the OCI runtime specification of a build's container.
func (b bundle) spec() *specs.Spec {
	caps := capabilities()
	first := slices.DeleteFunc(capabilities(), func(c string) bool { return c == gained })
	s := b.container(hostname)
	s.Process = &specs.Process{
		Args: append([]string{kaniko.Executor}, b.args...),
		Env:  b.env,
		Cwd:  "/",
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Effective: first, Permitted: first,
		},
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Hard: b.files, Soft: b.files},
			{Type: "RLIMIT_CORE"},
		},
	}
	s.Mounts = b.mounts()
	return s
}

// container returns what containers of builds and of runs have in common: namespaces,
// limits and filters.
func (b bundle) container(host string) *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: b.firstID, Size: mapped}}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: host,
		Root:     &specs.Root{Path: b.root},
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
			},
			CgroupsPath: b.cgroup,
			Resources:   b.resources(),
			Seccomp:     seccomp(),
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/scsi",
				"/proc/sched_debug", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func (b bundle) mounts() []specs.Mount {
	readonly := []string{"bind", "ro", "nosuid", "nodev"}
	return append(b.system(64*mib),
		specs.Mount{Destination: guarded, Type: "bind", Source: b.guarded, Options: append([]string{"noexec"}, readonly...)},
		specs.Mount{Destination: kaniko.Executor, Type: "bind", Source: b.executor, Options: readonly},
	)
}

// system are the mounts that every container has; shared memory is bounded by the limit
// of the cgroup too.
func (b bundle) system(shm int64) []specs.Mount {
	nodev := []string{"nosuid", "noexec", "nodev"}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: nodev},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", fmt.Sprintf("size=%dk", shm>>10)}, nodev...)},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: nodev},
		// A fresh sysfs would need a network namespace of the container's own.
		{Destination: "/sys", Type: "bind", Source: "/sys", Options: append([]string{"rbind", "ro"}, nodev...)},
		{Destination: "/etc/hosts", Type: "bind", Source: b.hosts, Options: append([]string{"bind", "rw"}, nodev...)},
		{Destination: "/etc/resolv.conf", Type: "bind", Source: b.resolv, Options: append([]string{"bind", "rw"}, nodev...)},
	}
}

func (b bundle) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &b.memory},
		Pids:    &specs.LinuxPids{Limit: &b.limits.PIDs},
	}
	if b.swap {
		r.Memory.Swap = &b.memory
	}
	if b.limits.CPU > 0 {
		const period = uint64(100_000)
		quota := max(int64(math.Ceil(b.limits.CPU*float64(period))), 1000)
		r.CPU = &specs.LinuxCPU{Period: new(period), Quota: &quota}
	}
	return r
}
