package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// found is what check found on this machine.
type found struct {
	runtime  ociRuntime
	executor string
	cgroups  []string
}

// Check looks for everything that an Engine needs on this machine and starts nothing.
// It returns what there is, in words, and all that is missing, with how to get it.
func Check(cfg Config) (present []string, missing []error) {
	f, missing := look(cfg.withDefaults())
	if f.runtime.path != "" {
		present = append(present, "OCI runtime "+f.runtime.path)
	}
	if f.executor != "" {
		present = append(present, "executor "+f.executor)
	}
	if len(f.cgroups) > 0 {
		present = append(present, "cgroups "+strings.Join(f.cgroups, " "))
	}
	return present, missing
}

// check is look with one error for all that is missing.
func check(cfg Config) (found, error) {
	f, missing := look(cfg)
	if len(missing) == 0 {
		return f, nil
	}
	all := missing[0]
	for _, err := range missing[1:] {
		all = fmt.Errorf("%w\n  - %w", all, err)
	}
	return found{}, fmt.Errorf("this machine cannot run builds in a sandbox:\n  - %w", all)
}

// look looks for everything that builds need.
func look(cfg Config) (f found, missing []error) {
	note := func(err error) {
		if err != nil {
			missing = append(missing, err)
		}
	}
	var err error
	f.runtime, err = findRuntime(cfg.Runtime)
	note(err)
	f.executor, err = findExecutor(cfg.Executor)
	note(err)
	if _, err := os.Stat("/bin/sh"); err != nil {
		note(errors.New("there is no /bin/sh, which guards containers: apt-get install dash"))
	}
	missing = append(missing, checkKernel()...)
	if f.cgroups, err = cgroupMounts(); err == nil && len(f.cgroups) == 0 {
		err = errors.New("no cgroups are mounted at /sys/fs/cgroup: without them builds cannot be limited")
	}
	note(err)
	return f, missing
}

func findRuntime(named string) (ociRuntime, error) {
	names := []string{named}
	if named == "" {
		names = []string{"runc", "crun", "runsc"}
	}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if path, err = filepath.Abs(path); err != nil {
			return ociRuntime{}, fmt.Errorf("find OCI runtime: %w", err)
		}
		return ociRuntime{path: path}, nil
	}
	if named != "" {
		return ociRuntime{}, fmt.Errorf("the OCI runtime %q is not there: correct its path, or install runc (apt-get install runc)", named)
	}
	return ociRuntime{}, errors.New("no OCI runtime (runc, crun or runsc) is on PATH: apt-get install runc")
}

func findExecutor(named string) (string, error) {
	const how = "make bin/kaniko-executor builds it (static, from the version pinned in deploy/kaniko)"
	path := named
	if path == "" {
		if self, err := os.Executable(); err == nil {
			path = filepath.Join(filepath.Dir(self), "kaniko-executor")
		}
		if _, err := os.Stat(path); err != nil {
			if path, err = exec.LookPath("kaniko-executor"); err != nil {
				return "", errors.New("the Kaniko executor is neither beside this program nor on PATH: " + how)
			}
		}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fmt.Errorf("the Kaniko executor %s is not there: %s", path, how)
	case !info.Mode().IsRegular() || info.Mode()&0o005 != 0o005:
		return "", fmt.Errorf("the Kaniko executor %s is not a file that everybody may read and execute: %s", path, how)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("find the Kaniko executor: %w", err)
	}
	return path, nil
}

func checkKernel() (missing []error) {
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("root is needed to map a range of user ids and to limit builds: run it as root (in a container: with --privileged)"))
	}
	if raw, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err != nil || strings.TrimSpace(string(raw)) == "0" {
		missing = append(missing, errors.New("the kernel allows no user namespaces: sysctl -w user.max_user_namespaces=10000"))
	}
	if !hasCapability(unix.CAP_SYS_ADMIN) {
		missing = append(missing, errors.New("CAP_SYS_ADMIN is missing: in a container, run it with --privileged"))
	}
	if raw, err := os.ReadFile("/proc/sys/fs/suid_dumpable"); err != nil || strings.TrimSpace(string(raw)) == "1" {
		missing = append(missing, errors.New("the kernel lets processes read more privileged ones, so commands could read credentials: sysctl -w fs.suid_dumpable=0"))
	}
	return missing
}

func hasCapability(number int) bool {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && bits&(1<<number) != 0
		}
	}
	return false
}

// availableMemory is what the kernel calls MemAvailable, in bytes; 0 is unknown.
func availableMemory() int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
