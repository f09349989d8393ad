package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ociRuntime is an OCI runtime's command.
type ociRuntime struct {
	path string
	// root is where the runtime keeps its state.
	root string
}

// command returns the command that starts the bundle in dir. It ends when the
// executor runs, which then has the command's standard output and error as its own:
// a runtime that stays would copy the two side by side, in no order.
func (r ociRuntime) command(dir, name string) *exec.Cmd {
	cmd := exec.Command(r.path, "--root", r.root, "--log", filepath.Join(dir, "runtime.log"), "--log-format", "json", //nolint:gosec,noctx // it ends soon, and must not be cut off halfway
		"run", "--detach", "--bundle", dir, "--pid-file", filepath.Join(dir, "pid"), name)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// guard starts a process that deletes the container when this process has ended,
// however it did. release ends the guard.
func (r ociRuntime) guard(name string) (release func(), err error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe of guard: %w", err)
	}
	// Several times, since the container may just be being made.
	const script = `read -r _; for i in 1 2 3; do "$0" --root "$1" delete --force "$2"; sleep 1; done`
	cmd := exec.Command("/bin/sh", "-c", script, r.path, r.root, name) //nolint:gosec,noctx // fixed script; it outlives contexts
	cmd.Stdin = out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = out.Close()
	if err != nil {
		_ = in.Close()
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = in.Close()
	}, nil
}

// call runs a short command of the runtime.
func (r ociRuntime) call(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.path, append([]string{"--root", r.root}, args...)...) //nolint:gosec // the operator names the runtime
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	return cmd.Run()
}

// kill ends every process of the container; it fails when there is none (yet).
func (r ociRuntime) kill(ctx context.Context, name string) error {
	return r.call(ctx, "kill", name, "KILL")
}

// remove deletes the container, running or not.
func (r ociRuntime) remove(ctx context.Context, name string) {
	// There may be none, which is what is wanted.
	_ = r.call(ctx, "delete", "--force", name)
}

// containers returns the names of containers that the runtime has state of.
func (r ociRuntime) containers() []string { return children(r.root) }

// failure returns the last error that the runtime logged in dir, if any.
func (r ociRuntime) failure(dir *os.Root) string {
	raw, err := dir.ReadFile("runtime.log")
	if err != nil {
		return ""
	}
	last := ""
	for line := range bytes.Lines(raw) {
		var entry struct{ Level, Msg string }
		if err := json.Unmarshal(line, &entry); err == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = strings.TrimSpace(entry.Msg)
		}
	}
	return last
}
