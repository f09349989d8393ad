package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// executor returns the path of the real executor, or skips the test.
func executor(t testing.TB) string {
	t.Helper()
	for _, path := range []string{os.Getenv("KILN_TEST_EXECUTOR"), "../../bin/kaniko-executor"} {
		if _, err := os.Stat(path); path != "" && err == nil {
			abs, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return abs
		}
	}
	t.Skip("SKIPPED: no Kaniko executor; get it with: make bin/kaniko-executor, or name one in KILN_TEST_EXECUTOR")
	return ""
}

// testConfig returns a configuration for real containers, or skips the test.
func testConfig(t testing.TB) Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: real containers need root; run the tests as root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("SKIPPED: no OCI runtime; get it with: apt-get install runc")
	}
	return Config{Executor: executor(t), StateDir: t.TempDir()}
}

func engine(t testing.TB, cfg Config) *Engine {
	t.Helper()
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}
