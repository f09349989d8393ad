package sandbox

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/builder/enginetest"
)

func harness(root string) func(*testing.T) enginetest.Harness {
	return func(t *testing.T) enginetest.Harness {
		t.Helper()
		cfg := testConfig(t)
		cfg.Root = root
		e := engine(t, cfg)
		reg := enginetest.NewRegistry(t)
		return enginetest.Harness{
			Engine: e, Registry: reg, Base: enginetest.PushBase(t, reg.Host+"/base"),
			Leftovers: func() []string { return leftovers(t, e) },
		}
	}
}

// leftovers names what is left of builds: folders, containers, cgroups, mounts.
func leftovers(t *testing.T, e *Engine) []string {
	t.Helper()
	var left []string
	for _, name := range children(filepath.Join(e.state.path, "builds")) {
		left = append(left, "build root "+name)
	}
	for _, name := range e.runtime.containers() {
		left = append(left, "container "+name)
	}
	for _, name := range e.cgroups.names() {
		left = append(left, "cgroup "+name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, e.state.path) {
			left = append(left, "mount "+line)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.slots) > 0 || len(e.running) > 0 || e.tmpfs != 0 {
		left = append(left, "slots or tmpfs budget")
	}
	return left
}

func TestSandboxConformsOnTmpfs(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, harness(RootTmpfs))
}

func TestSandboxConformsOnDisk(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, harness(RootDisk))
}

// BenchmarkTinyBuild is a build of one command on a base of a few files.
func BenchmarkTinyBuild(b *testing.B) {
	for _, root := range []string{RootTmpfs, RootDisk} {
		b.Run(root, func(b *testing.B) {
			cfg := testConfig(b)
			cfg.Root = root
			e, s := engine(b, cfg), newSite(b)
			plan := s.plan(b, "RUN echo x >/made")
			for b.Loop() {
				if _, err := e.Run(b.Context(), plan, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
