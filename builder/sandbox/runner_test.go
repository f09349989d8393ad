package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"kiln/builder/enginetest"
	"kiln/builder/registry"
	"kiln/builder/run"
	"kiln/builder/run/runtest"
)

// runSite is what runners of a test share: the programs, a registry and an image.
type runSite struct {
	launcher, host, image string
}

// newRunSite builds the programs once for all tests of this process.
var newRunSite = sync.OnceValue(func() func(testing.TB) runSite { //nolint:gochecknoglobals // built once
	var once sync.Once
	var dir string
	return func(tb testing.TB) runSite {
		tb.Helper()
		once.Do(func() { dir = buildLauncher(tb) })
		host := enginetest.NewRegistry(tb).Host
		return runSite{launcher: filepath.Join(dir, "kiln-init"), host: host, image: runtest.PushImage(tb, host+"/team/probe")}
	}
})

func buildLauncher(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "kiln-init")
	if err != nil {
		tb.Fatal(err)
	}
	runtest.Build(tb, "kiln/cmd/kiln-init", dir)
	return dir
}

// runConfig returns a configuration for real containers, or skips the test.
func runConfig(tb testing.TB, site runSite) RunnerConfig {
	tb.Helper()
	return RunnerConfig{
		Launcher: site.launcher, StateDir: tb.TempDir(), Images: images(tb, registry.Config{}), Grace: 3e9,
	}
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
	site := newRunSite()(t)
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
