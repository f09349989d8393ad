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
	// launcher is kiln-init, for runs.
	launcher string
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
	return f, together("builds", missing)
}

// checkRunner is check for what runs need.
func checkRunner(cfg RunnerConfig) (f found, err error) {
	var missing []error
	note := func(err error) {
		if err != nil {
			missing = append(missing, err)
		}
	}
	f.runtime, err = findRuntime(cfg.Runtime)
	note(err)
	f.launcher, err = findProgram("kiln-init", cfg.Launcher, "make build builds it")
	note(err)
	missing = append(missing, checkKernel()...)
	f.cgroups, err = findCgroups()
	note(err)
	return f, together("functions", missing)
}

// together is one error of all.
func together(what string, missing []error) error {
	if len(missing) == 0 {
		return nil
	}
	all := missing[0]
	for _, err := range missing[1:] {
		all = fmt.Errorf("%w\n  - %w", all, err)
	}
	return fmt.Errorf("this machine cannot run %s in a sandbox:\n  - %w", what, all)
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
	f.cgroups, err = findCgroups()
	note(err)
	return f, missing
}

func findCgroups() ([]string, error) {
	mounts, err := cgroupMounts()
	if err == nil && len(mounts) == 0 {
		err = errors.New("no cgroups are mounted at /sys/fs/cgroup: without them nothing can be limited")
	}
	return mounts, err
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
	return findProgram("kaniko-executor", named, "make bin/kaniko-executor builds it (static, from the version pinned in deploy/kaniko)")
}

// findProgram returns the path of a program that goes into containers: the named one,
// else that of the name beside this program, else on PATH.
func findProgram(name, named, how string) (string, error) {
	path := named
	if path == "" {
		if self, err := os.Executable(); err == nil {
			path = filepath.Join(filepath.Dir(self), name)
		}
		if _, err := os.Stat(path); err != nil {
			if path, err = exec.LookPath(name); err != nil {
				return "", fmt.Errorf("%s is neither beside this program nor on PATH: %s", name, how)
			}
		}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s is not there (%s): %s", name, path, how)
	case !info.Mode().IsRegular() || info.Mode()&0o005 != 0o005:
		return "", fmt.Errorf("%s (%s) is not a file that everybody may read and execute: %s", name, path, how)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
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
