package sandbox

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"kiln/builder"
)

func testBundle() *specs.Spec {
	return bundle{
		args: []string{"--x"}, env: []string{"A=b"}, root: "/mnt", executor: "/bin/kaniko-executor", guarded: "/s/guarded", hosts: "/s/hosts",
		resolv: "/s/resolv.conf", cgroup: "/kiln/mark/name", firstID: 165536, memory: 5 * gib, swap: true, files: 1024,
		limits: builder.Limits{Memory: 4 * gib, PIDs: 100, CPU: 1.5},
	}.spec()
}

func TestBundleIsolates(t *testing.T) {
	t.Parallel()
	s := testBundle()
	var kinds []specs.LinuxNamespaceType
	for _, ns := range s.Linux.Namespaces {
		kinds = append(kinds, ns.Type)
		if ns.Path != "" {
			t.Errorf("namespace %s is shared: %s", ns.Type, ns.Path)
		}
	}
	for _, want := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		if !slices.Contains(kinds, want) {
			t.Errorf("no %s namespace", want)
		}
	}
	for _, ids := range [][]specs.LinuxIDMapping{s.Linux.UIDMappings, s.Linux.GIDMappings} {
		if len(ids) != 1 || ids[0] != (specs.LinuxIDMapping{ContainerID: 0, HostID: 165536, Size: 65536}) {
			t.Errorf("id mappings are %+v", ids)
		}
	}
	for _, never := range []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_DAC_READ_SEARCH", "CAP_BPF"} {
		if slices.Contains(s.Process.Capabilities.Bounding, never) {
			t.Errorf("the container may get %s", never)
		}
	}
	if len(s.Process.Capabilities.Inheritable)+len(s.Process.Capabilities.Ambient) > 0 {
		t.Error("capabilities are inherited")
	}
	for _, m := range s.Mounts {
		if m.Source == "/sys" || m.Destination == guarded || strings.HasPrefix(m.Destination, "/kaniko") {
			if !slices.Contains(m.Options, "ro") {
				t.Errorf("%s is writable", m.Destination)
			}
		}
	}
}

// The executor must gain a capability when it is executed: see gained.
func TestExecutorGainsACapability(t *testing.T) {
	t.Parallel()
	caps := testBundle().Process.Capabilities
	if !slices.Contains(caps.Bounding, gained) || slices.Contains(caps.Permitted, gained) || slices.Contains(caps.Effective, gained) {
		t.Errorf("capabilities %+v: %s must be in the bounding set alone", caps, gained)
	}
	if len(caps.Permitted)+1 != len(caps.Bounding) {
		t.Errorf("more than %s is gained", gained)
	}
}

func TestBundleLimits(t *testing.T) {
	t.Parallel()
	r := testBundle().Linux.Resources
	if *r.Memory.Limit != 5*gib || *r.Memory.Swap != 5*gib || *r.Pids.Limit != 100 || *r.CPU.Quota != 150_000 || *r.CPU.Period != 100_000 {
		raw, err := json.Marshal(r)
		t.Errorf("resources are %s (%v)", raw, err)
	}
}

func TestSeccompRefusesWhatBuildsDoNotNeed(t *testing.T) {
	t.Parallel()
	filter := seccomp()
	refused := make(map[string]bool)
	for _, rule := range filter.Syscalls {
		for _, call := range rule.Names {
			refused[call] = true
		}
		if rule.Action != specs.ActErrno || rule.ErrnoRet == nil || *rule.ErrnoRet == 0 {
			t.Errorf("rule for %v is not an error", rule.Names)
		}
	}
	for _, call := range []string{"keyctl", "add_key", "request_key", "bpf", "perf_event_open", "kexec_load", "init_module", "open_by_handle_at", "userfaultfd", "mount", "unshare", "setns", "ptrace", "clone3"} {
		if !refused[call] {
			t.Errorf("%s is allowed", call)
		}
	}
	for _, call := range []string{"execve", "chroot", "chown", "mknod", "fork", "setuid", "openat"} {
		if refused[call] {
			t.Errorf("%s is refused", call)
		}
	}
}

func TestConfigurationFaultsAreAllNamed(t *testing.T) {
	t.Parallel()
	err := Config{Root: "ram", SubUIDBase: 5, TmpfsBudget: -1, CgroupParent: "x", Limits: builder.Limits{Memory: -1}}.withDefaults().validate()
	if err == nil {
		t.Fatal("validate accepts it")
	}
	for _, want := range []string{"state directory", "ram", "5 must be", "budget", "cgroup parent", "limits"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if err := (Config{StateDir: "/x"}).withDefaults().validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestBuildRootGoesWhereItFits(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		root         string
		budget, used int64
		base         builder.Image
		tmpfs        bool
		fails        bool
	}{
		"fits":                  {RootAuto, 8 * gib, 0, builder.Image{Size: gib}, true, false},
		"does not fit":          {RootAuto, 4 * gib, 0, builder.Image{Size: gib}, false, false},
		"others use the budget": {RootAuto, 8 * gib, 4 * gib, builder.Image{Size: gib}, false, false},
		"unknown size":          {RootAuto, 8 * gib, 0, builder.Image{}, false, false},
		"scratch":               {RootAuto, 8 * gib, 0, builder.Image{Ref: builder.Scratch}, true, false},
		"disk":                  {RootDisk, 8 * gib, 0, builder.Image{Size: 1}, false, false},
		"tmpfs, smaller":        {RootTmpfs, gib, 0, builder.Image{Size: gib}, true, false},
		"tmpfs, used up":        {RootTmpfs, gib, gib, builder.Image{Size: gib}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &Engine{cfg: Config{Root: tc.root, TmpfsBudget: tc.budget}.withDefaults(), tmpfs: tc.used}
			where, release, err := e.choosePlace(builder.Plan{Base: tc.base, Limits: builder.Limits{Disk: 20 * gib}})
			if (err != nil) != tc.fails || where.tmpfs != tc.tmpfs {
				t.Fatalf("got %+v, %v", where, err)
			}
			if err != nil {
				return
			}
			if where.tmpfs && (e.tmpfs != tc.used+where.size || e.tmpfs > tc.budget) {
				t.Errorf("%d of %d are reserved after %d", e.tmpfs, tc.budget, where.size)
			}
			if release(); e.tmpfs != tc.used {
				t.Errorf("%d are reserved after the release, want %d", e.tmpfs, tc.used)
			}
		})
	}
}
