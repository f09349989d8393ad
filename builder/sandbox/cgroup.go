package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups are those of one Engine: <mount><path>/<name of build>, for every mounted
// hierarchy (one with cgroup v2, one per controller with v1).
type cgroups struct {
	mounts []string
	path   string
}

// cgroupMounts returns the mount points of cgroup hierarchies.
func cgroupMounts() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var mounts []string
	for line := range strings.Lines(string(raw)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(kind) > 0 && (kind[0] == "cgroup" || kind[0] == "cgroup2") {
			mounts = append(mounts, fields[4])
		}
	}
	return mounts, nil
}

// limitsSwap reports whether memory limits can include swap.
func (c cgroups) limitsSwap() bool {
	for _, mount := range c.mounts {
		for _, file := range []string{"memory.memsw.limit_in_bytes", "cgroup.subtree_control"} {
			if _, err := os.Stat(filepath.Join(mount, file)); err == nil && filepath.Base(mount) != "unified" {
				return true
			}
		}
	}
	return false
}

// oomKills is how many processes of the build the kernel killed for want of memory.
func (c cgroups) oomKills(name string) int {
	most := 0
	for _, mount := range c.mounts {
		for _, file := range []string{"memory.events", "memory.oom_control"} {
			raw, err := os.ReadFile(filepath.Join(mount, c.path, name, file)) //nolint:gosec // below a cgroup mount
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(raw)) {
				if value, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
					n, _ := strconv.Atoi(value)
					most = max(most, n)
				}
			}
		}
	}
	return most
}

// remove kills what is in the cgroups of a build and removes them. It waits until
// they are gone or ctx is done.
func (c cgroups) remove(ctx context.Context, name string) error {
	for {
		left := false
		for _, mount := range c.mounts {
			left = removeTree(filepath.Join(mount, c.path, name)) || left
		}
		if !left {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of %s do not end: %w", name, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill ends what is in the cgroups of a build.
func (c cgroups) kill(name string) {
	for _, mount := range c.mounts {
		removeTree(filepath.Join(mount, c.path, name))
	}
}

// removeTree reports whether the cgroup is still there.
func removeTree(dir string) bool {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	for _, child := range children(dir) {
		removeTree(filepath.Join(dir, child))
	}
	raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) //nolint:gosec // below a cgroup mount
	for line := range strings.Lines(string(raw)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	err := unix.Rmdir(dir)
	return err != nil && !errors.Is(err, unix.ENOENT)
}

// names returns the builds that have cgroups.
func (c cgroups) names() []string {
	all := make([]string, 0, len(c.mounts))
	for _, mount := range c.mounts {
		all = append(all, children(filepath.Join(mount, c.path))...)
	}
	return all
}

// removeParent removes the cgroup that held those of an Engine. The one above it stays:
// somebody else may just be making one below it.
func (c cgroups) removeParent() {
	for _, mount := range c.mounts {
		_ = unix.Rmdir(filepath.Join(mount, c.path))
	}
}

func children(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}
