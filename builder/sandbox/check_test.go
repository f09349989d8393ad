package sandbox

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckNamesAllThatIsMissing(t *testing.T) {
	t.Parallel()
	cfg := Config{Runtime: "/nowhere/runc", Executor: "/nowhere/executor", StateDir: t.TempDir()}
	present, missing := Check(cfg)
	text := errors.Join(missing...).Error()
	if len(missing) < 2 || !strings.Contains(text, "/nowhere/runc") || !strings.Contains(text, "/nowhere/executor") || !strings.Contains(text, "make bin/kaniko-executor") {
		t.Errorf("missing = %v", missing)
	}
	if text := strings.Join(present, "\n"); strings.Contains(text, "/nowhere") {
		t.Errorf("present = %v", present)
	}
	// A worker refuses to start with the same words.
	_, err := New(t.Context(), cfg)
	if err == nil {
		t.Fatal("New succeeded")
	}
	for _, one := range missing {
		if !strings.Contains(err.Error(), "\n  - "+one.Error()) {
			t.Errorf("New() = %v\nlacks %v", err, one)
		}
	}
}
