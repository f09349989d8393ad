package sandbox

import (
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// denied are the system calls that builds have no use for: kernel modules and
// images, keyrings, tracing, BPF, clocks, mounts, namespaces, and what opens files
// past the mount namespace.
func denied() []string {
	return []string{
		"acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module", "finit_module",
		"fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "get_mempolicy", "init_module", "io_uring_enter",
		"io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
		"lookup_dcookie", "mbind", "mount", "mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "nfsservctl",
		"open_by_handle_at", "open_tree", "perf_event_open", "pivot_root", "process_vm_readv", "process_vm_writev",
		"ptrace", "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "set_mempolicy", "setns",
		"settimeofday", "stime", "swapoff", "swapon", "sysfs", "_sysctl", "syslog", "umount", "umount2", "unshare",
		"uselib", "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
	}
}

// seccomp returns the filter: everything but denied() and new namespaces. clone3
// hides its flags behind a pointer, so it does not exist: every C library falls
// back to clone.
func seccomp() *specs.LinuxSeccomp {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	flags := uint(0)
	if runtime.GOARCH == "s390x" {
		flags = 1
	}
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: architectures(),
		Syscalls: []specs.LinuxSyscall{
			{Names: denied(), Action: specs.ActErrno, ErrnoRet: &eperm},
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys},
			namespaceRule(flags, &eperm, unix.CLONE_NEWNS), namespaceRule(flags, &eperm, unix.CLONE_NEWCGROUP),
			namespaceRule(flags, &eperm, unix.CLONE_NEWUTS), namespaceRule(flags, &eperm, unix.CLONE_NEWIPC),
			namespaceRule(flags, &eperm, unix.CLONE_NEWUSER), namespaceRule(flags, &eperm, unix.CLONE_NEWPID),
			namespaceRule(flags, &eperm, unix.CLONE_NEWNET),
		},
	}
}

// namespaceRule refuses clone with the flag set.
func namespaceRule(index uint, errno *uint, flag uint64) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: errno,
		Args: []specs.LinuxSeccompArg{{Index: index, Value: flag, ValueTwo: flag, Op: specs.OpMaskedEqual}},
	}
}

// architectures are the native one and those that the same kernel also runs.
func architectures() []specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	default:
		return nil
	}
}
