package sandbox

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder"
	"kiln/builder/registry"
	"kiln/builder/run"
	"kiln/builder/run/runtest"
)

// helperVar holds, for the test program as a helper, what it is to run.
const helperVar = "KILN_TEST_RUN"

type helperTask struct {
	Config struct{ Launcher, StateDir string }
	Plan   run.Plan
}

// TestHelperProcess is no test: it is a program that runs a plan until it is killed.
func TestHelperProcess(t *testing.T) { //nolint:paralleltest // it runs alone, in a process of its own
	text := os.Getenv(helperVar)
	if text == "" {
		return
	}
	var task helperTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		t.Fatal(err)
	}
	r := runner(t, RunnerConfig{Launcher: task.Config.Launcher, StateDir: task.Config.StateDir, Images: images(t, registry.Config{})})
	_, err := r.Run(t.Context(), task.Plan, run.Watch{Logs: os.Stdout})
	t.Fatalf("Run returned: %v", err)
}

// helper starts a program that runs the plan, and returns what it logs.
func helper(t *testing.T, cfg RunnerConfig, plan run.Plan) (*exec.Cmd, *runtest.Log) {
	t.Helper()
	task := helperTask{Plan: plan}
	task.Config.Launcher, task.Config.StateDir = cfg.Launcher, cfg.StateDir
	raw, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelperProcess$")
	cmd.Env = append(os.Environ(), helperVar+"="+string(raw))
	log := &runtest.Log{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, log
}

func TestProcessSurvivesTheDeathOfItsProgram(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	plan := runtest.NewPlan(site.image, t.Name(), "id", "wait")
	cmd, log := helper(t, cfg, plan)
	log.Await(t, "id ")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	r := runner(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	again := &runtest.Log{}
	done := make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, plan, run.Watch{Logs: again})
		done <- err
	}()
	again.Await(t, "id ")
	if again.String() != log.String() {
		t.Errorf("log is %q, was %q", again, log)
	}
	cancel()
	if err := <-done; builder.KindOf(err) != builder.KindCanceled {
		t.Errorf("got %v, want canceled", err)
	}
	nothingRuns(t, r)
}

// TestKilledAtAnyMomentNothingStartsTwice kills programs at many moments of a start. What
// the next one finds either runs, or never ran and is never started.
func TestKilledAtAnyMomentNothingStartsTwice(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	r := runner(t, cfg)
	outcomes := map[builder.Kind]int{}
	for i := range 12 {
		plan := runtest.NewPlan(site.image, t.Name()+string(rune('a'+i)), "id", "exit", "4")
		cmd, _ := helper(t, cfg, plan)
		timer := time.NewTimer(time.Duration(i) * 40 * time.Millisecond)
		<-timer.C
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log := &runtest.Log{}
		result, err := r.Run(t.Context(), plan, run.Watch{Logs: log})
		kind := builder.Kind("")
		if err != nil {
			kind = builder.KindOf(err)
		}
		outcomes[kind]++
		ids := strings.Count(log.String(), "id ")
		if (err == nil && (result.ExitCode != 4 || ids != 1)) || (err != nil && (kind != builder.KindUnavailable || ids != 0)) {
			t.Errorf("kill %d: result %+v, error %v, log:\n%s", i, result, err, log)
		}
	}
	t.Logf("outcomes: %v", outcomes)
	nothingRuns(t, r)
}

func TestMarkedButNeverStartedIsNeverStarted(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	plan := runtest.NewPlan(site.image, t.Name(), "id")
	a, err := r.attempt(plan.RunID, plan.Attempt)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.reset(); err != nil {
		t.Fatal(err)
	}
	if err := a.mark(marker{Made: time.Now()}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		log := &runtest.Log{}
		if _, err := r.Run(t.Context(), plan, run.Watch{Logs: log}); builder.KindOf(err) != builder.KindUnavailable || log.String() != "" {
			t.Errorf("got %v, log %q, want unavailable", err, log)
		}
	}
	plan.Attempt++
	if _, err := r.Run(t.Context(), plan, run.Watch{}); err != nil {
		t.Errorf("the next attempt: %v", err)
	}
}

// startIsComplete returns when a running attempt's start is over: whoever attaches comes
// after it.
func startIsComplete(t *testing.T, r *Runner, plan run.Plan) {
	t.Helper()
	ctx, detach := context.WithCancelCause(t.Context())
	log, done := &runtest.Log{}, make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, plan, run.Watch{Logs: log})
		done <- err
	}()
	log.Await(t, "here\n")
	detach(builder.ErrShutdown)
	<-done
}

func TestKilledContainerIsUnavailable(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	plan := runtest.NewPlan(site.image, t.Name(), "out", "here", "wait")
	log, done := &runtest.Log{}, make(chan error, 1)
	go func() {
		_, err := r.Run(t.Context(), plan, run.Watch{Logs: log})
		done <- err
	}()
	log.Await(t, "here\n")
	startIsComplete(t, r, plan)
	a, err := r.attempt(plan.RunID, 1)
	if err != nil {
		t.Fatal(err)
	}
	if a.pid() == 0 {
		t.Fatal("there is no process")
	}
	// The launcher itself, as an administrator might.
	if err := syscall.Kill(a.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(err.Error(), "how it ended") {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestImagesAreUnpackedOnceAndEvictedWhenUnused(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	var blobs atomic.Int32
	first := site.push(t, "a", nil)
	second := site.push(t, "b", func(c *v1.Config) { c.Labels = map[string]string{"b": "b"} })
	site.registry.Fault(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		return false
	})
	cfg := runConfig(t, site)
	cfg.CacheSize = 1
	r := runner(t, cfg)
	waiting := runtest.NewPlan(first, t.Name()+"waits", "out", "here", "wait", "cat", "/bin/probe")
	log, done := &runtest.Log{}, make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, err := r.Run(ctx, waiting, run.Watch{Logs: log})
		done <- err
	}()
	log.Await(t, "here\n")
	before := blobs.Load()
	try := func(image, name string) {
		t.Helper()
		if _, err := r.Run(t.Context(), runtest.NewPlan(image, t.Name()+name), run.Watch{}); err != nil {
			t.Fatal(err)
		}
	}
	try(first, "again")
	if blobs.Load() != before {
		t.Error("the image was pulled again")
	}
	// The first is in use, whatever the bound is.
	try(second, "other")
	if got := len(children(r.images.root.Name())); got != 2 {
		t.Errorf("%d images are unpacked, want 2", got)
	}
	cancel()
	if err := <-done; builder.KindOf(err) != builder.KindCanceled {
		t.Errorf("got %v, want canceled", err)
	}
	third := site.push(t, "c", func(c *v1.Config) { c.Labels = map[string]string{"c": "c"} })
	try(third, "third")
	if got := children(r.images.root.Name()); len(got) != 1 || !strings.HasSuffix(third, strings.TrimPrefix(got[0], r.images.boot+"-")) {
		t.Errorf("unpacked are %q, want the last one", got)
	}
	if locks, _ := filepath.Glob(filepath.Join(r.images.root.Name(), "*.lock")); len(locks) != 1 {
		t.Errorf("locks are left: %q", locks)
	}
}

func TestOldRemainsAreSwept(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	cfg.Keep = time.Hour
	r := runner(t, cfg)
	ended, marked := runtest.NewPlan(site.image, t.Name()+"ended"), runtest.NewPlan(site.image, t.Name()+"marked", "id", "wait")
	if _, err := r.Run(t.Context(), ended, run.Watch{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	log, done := &runtest.Log{}, make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, marked, run.Watch{Logs: log})
		done <- err
	}()
	log.Await(t, "id ")
	stop(builder.ErrShutdown)
	<-done
	if err := r.images.root.Mkdir("part-x", 0o700); err != nil {
		t.Fatal(err)
	}
	r.sweep(t.Context(), time.Now().Add(time.Minute))
	if got := len(children(filepath.Join(r.state.path, "runs"))); got != 2 {
		t.Errorf("%d attempts are left, want both", got)
	}
	if _, err := r.images.root.Stat("part-x"); err == nil {
		t.Error("a part of an image is left")
	}
	r.sweep(t.Context(), time.Now().Add(3*time.Hour))
	if got := runLeftovers(t, r); len(got) != 0 {
		t.Errorf("left are %q", got)
	}
	if locks, _ := filepath.Glob(filepath.Join(r.state.path, "runs", "*")); len(locks) != 0 {
		t.Errorf("left are %q", locks)
	}
}

// TestSilentRuntimeIsNotTakenForAnEnd has a runtime that does not answer once the
// process runs.
func TestSilentRuntimeIsNotTakenForAnEnd(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	broken := filepath.Join(t.TempDir(), "broken")
	working, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase \" $* \" in *\" state \"*) exit 1;; esac\nexec " + working + " \"$@\"\n"
	if err := os.WriteFile(broken, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	silent := cfg
	silent.Runtime = broken
	plan := runtest.NewPlan(site.image, t.Name(), "out", "here", "wait")
	if _, err := runner(t, silent).Run(t.Context(), plan, run.Watch{}); builder.KindOf(err) != builder.KindInterrupted {
		t.Errorf("got %v, want interrupted", err)
	}
	r := runner(t, cfg)
	startIsComplete(t, r, plan)
	if err := r.Forget(t.Context(), plan.RunID, plan.Attempt); err != nil {
		t.Error(err)
	}
}
