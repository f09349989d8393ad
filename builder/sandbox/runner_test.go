package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder/enginetest"
	"kiln/builder/registry"
	"kiln/builder/run"
	"kiln/builder/run/runtest"
)

// built are the programs of the tests, built by the first one that needs them.
var built struct {
	sync.Once

	launcher, probe []byte
}

// runSite is what runners of a test share: the launcher, a registry and an image.
type runSite struct {
	launcher, host, image string
	registry              *enginetest.Registry
}

func newRunSite(tb testing.TB) runSite {
	tb.Helper()
	built.Do(func() {
		built.launcher, built.probe = runtest.Build(tb, "kiln/cmd/kiln-init"), runtest.Build(tb, runtest.ProbePackage)
	})
	launcher := filepath.Join(tb.TempDir(), "kiln-init")
	if err := os.WriteFile(launcher, built.launcher, 0o755); err != nil {
		tb.Fatal(err)
	}
	reg := enginetest.NewRegistry(tb)
	site := runSite{launcher: launcher, host: reg.Host, registry: reg}
	site.image = site.push(tb, "probe", nil)
	return site
}

// push pushes the image of the suite, with a change unless it is nil.
func (s runSite) push(tb testing.TB, name string, change func(*v1.Config)) string {
	tb.Helper()
	return runtest.PushImage(tb, s.host+"/team/"+name, built.probe, change)
}

// runConfig returns a configuration for real containers, or skips the test.
func runConfig(tb testing.TB, site runSite) RunnerConfig {
	tb.Helper()
	dir := tb.TempDir()
	tb.Cleanup(func() {
		// After all runners that share it.
		mounts, _ := cgroupMounts()
		cgroups{mounts: mounts, path: "/kiln/" + markOf(dir)}.removeParent()
	})
	return RunnerConfig{Launcher: site.launcher, StateDir: dir, Images: images(tb, registry.Config{}), Grace: 3 * time.Second}
}

func needContainers(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("SKIPPED: real containers need root; run the tests as root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		tb.Skip("SKIPPED: no OCI runtime; get it with: apt-get install runc")
	}
}

func runner(tb testing.TB, cfg RunnerConfig) *Runner {
	tb.Helper()
	r, err := NewRunner(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

func TestRunnerConforms(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	runtest.Run(t, func(t *testing.T) runtest.Harness {
		t.Helper()
		cfg := runConfig(t, site)
		r := runner(t, cfg)
		t.Cleanup(func() { nothingRuns(t, r) })
		return runtest.Harness{
			Runner: r, Another: func(t *testing.T) run.Runner { t.Helper(); return runner(t, cfg) },
			Image: site.image, Missing: site.host + "/team/probe@sha256:" + strings.Repeat("0", 64),
			Memory: true, Disk: true, MaxResults: run.MaxResults,
			Leftovers: func() []string { return runLeftovers(t, r) },
		}
	})
}

// runLeftovers names what is left of attempts.
func runLeftovers(t *testing.T, r *Runner) []string {
	t.Helper()
	left := children(filepath.Join(r.state.path, "runs"))
	for _, name := range r.runtime.containers() {
		left = append(left, "container "+name)
	}
	for _, name := range r.cgroups.names() {
		left = append(left, "cgroup "+name)
	}
	return left
}

// nothingRuns checks that attempts that have ended keep nothing but log and ending.
func nothingRuns(t *testing.T, r *Runner) {
	t.Helper()
	if left := r.runtime.containers(); len(left) > 0 {
		t.Errorf("containers are left: %q", left)
	}
	if left := r.cgroups.names(); len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
	for _, name := range children(filepath.Join(r.state.path, "runs")) {
		if left := children(filepath.Join(r.state.path, "runs", name)); len(left) > 0 {
			t.Errorf("attempt %s keeps %q", name, left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), r.state.path) {
		t.Error("mounts are left")
	}
}
