//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/events"
)

// runnable is a function whose image holds a greeting, which its process prints.
func runnable(t *testing.T, base, greeting, script string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "greeter", "project": "e2e"},
		"spec": map[string]any{
			"command": "/bin/sh", "args": []string{"-c", script},
			"build": map[string]any{"base_image": base, "with_mlrun": false, "auto_build": true, "commands": []string{greeting}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "function.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestARunWaitsForItsImageAndStarts(t *testing.T) {
	k := up(t, t.TempDir())
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for _, tc := range []struct {
		name, greeting, script string
		args                   []string
		code                   int
		out, says              string
	}{
		{"built", "echo hello > /greeting", "cat /greeting; echo $WHO", []string{"--env", "WHO=world"}, 0, "hello\nworld\n", "image built"},
		{"again", "echo hello > /greeting", "cat /greeting; echo $WHO", nil, 0, "hello\n\n", "image reused"},
		{"changed", "echo bye > /greeting", "cat /greeting", nil, 0, "bye\n", "image built"},
		{"failing build", "echo no such thing; exit 3", "cat /greeting", nil, 1, "", "command_failed"},
		{"failing process", "echo bye > /greeting", "echo last words; exit 7", nil, 1, "last words\n", "exit code 7"},
		{"no auto_build", "echo hello > /greeting", "true", []string{"--no-auto-build"}, 1, "", "image_required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"run", "-f", runnable(t, base, tc.greeting, tc.script)}, tc.args...)
			out, errs, code := k.run(ctx, args...)
			if code != tc.code || !strings.Contains(out+errs, tc.says) || (tc.code == 0 && !strings.Contains(out, tc.out)) || !strings.Contains(out+errs, tc.out) {
				t.Errorf("kiln run = %d\n%s\n%s\nwant %d, %q and %q", code, out, errs, tc.code, tc.out, tc.says)
			}
		})
	}
	if out, _, code := k.run(ctx, "runs"); code != 0 || strings.Count(out, "e2e/greeter") != 6 {
		t.Errorf("kiln runs = %d\n%s", code, out)
	}
}

// TestARunOutlivesKiln: the process of a run goes on while Kiln is dead, and is found
// again; it is not started twice.
func TestARunOutlivesKiln(t *testing.T) {
	dir := t.TempDir()
	k := up(t, dir, "KILN_WORKER_LEASE=6s")
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	script := "echo started; for i in 1 2 3 4 5 6 7 8; do sleep 1; done; echo ended"
	out, errs, code := k.run(ctx, "run", "-f", runnable(t, base, "true", script), "--detach")
	id := strings.TrimSpace(out)
	if code != 0 || id == "" {
		t.Fatalf("kiln run = %d %q %q", code, out, errs)
	}
	runEvents := func() map[events.Type]int {
		counts := map[events.Type]int{}
		for _, e := range emittedOn(t, k.js(t), "RUN") {
			counts[events.Type(e.subject)]++
		}
		return counts
	}
	await(t, time.Minute, "the process", func() bool { return runEvents()[events.TypeRunStarted] > 0 })
	k.kill(t)
	k = upAt(t, dir, k.Registry, "KILN_WORKER_LEASE=6s")
	await(t, time.Minute, "the end of the run", func() bool { return runEvents()[events.TypeRunCompleted] > 0 })
	out, errs, code = k.run(ctx, "logs", id)
	if want := "started\nended\n"; code != 0 || !strings.Contains(out, want) || strings.Count(out, "started\n") != 1 {
		t.Errorf("kiln logs = %d %q %q, want %q once", code, out, errs, want)
	}
	if n := runEvents(); n[events.TypeRunStarted] != 1 || n[events.TypeRunCompleted] != 1 {
		t.Errorf("events %v, want one start and one end", n)
	}
}
