package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// executor returns the path of the real executor, or skips the test.
func executor(tb testing.TB) string {
	tb.Helper()
	for _, path := range []string{os.Getenv("KILN_TEST_EXECUTOR"), "../../bin/kaniko-executor"} {
		if _, err := os.Stat(path); path != "" && err == nil {
			abs, err := filepath.Abs(path)
			if err != nil {
				tb.Fatal(err)
			}
			return abs
		}
	}
	tb.Skip("SKIPPED: no Kaniko executor; get it with: make bin/kaniko-executor, or name one in KILN_TEST_EXECUTOR")
	return ""
}

// testConfig returns a configuration for real containers, or skips the test.
func testConfig(tb testing.TB) Config {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("SKIPPED: real containers need root; run the tests as root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		tb.Skip("SKIPPED: no OCI runtime; get it with: apt-get install runc")
	}
	return Config{Executor: executor(tb), StateDir: tb.TempDir()}
}

func engine(tb testing.TB, cfg Config) *Engine {
	tb.Helper()
	e, err := New(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	return e
}
