package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// failedCode is the exit code when no process was started, as a shell's.
const failedCode = 127

// Main runs the Spec in the file and returns the code to exit with: that of the process.
// It is meant for a program that does nothing else: it takes the signals that end
// programs, which it passes on to the process, and the end of every child.
func Main(specFile string) int {
	spec, err := read(specFile)
	if err != nil {
		// Nobody said where to report to.
		_, _ = fmt.Fprintln(os.Stderr, "kiln-init:", err)
		return failedCode
	}
	return spec.main()
}

func read(file string) (Spec, error) {
	var spec Spec
	raw, err := os.ReadFile(file) //nolint:gosec // the runner names it
	if err == nil {
		err = json.Unmarshal(raw, &spec)
	}
	if err != nil {
		return spec, fmt.Errorf("read what to run: %w", err)
	}
	return spec, nil
}

func (s Spec) main() int {
	// Before the start, so that no signal is lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	report := Report{}
	out := output{}
	pid, err := 0, error(nil)
	if s.Pipe {
		out, err = pipe()
	}
	if err == nil {
		pid, err = s.start(out.fd())
	}
	if err != nil {
		report.Failure = err.Error()
		s.write(report)
		return failedCode
	}
	report.Started = time.Now().UTC()
	if s.Started != "" {
		_ = os.WriteFile(s.Started, []byte(report.Started.Format(time.RFC3339Nano)), 0o644) //nolint:gosec // it holds a time
	}
	go func() {
		for sig := range signals {
			if number, ok := sig.(syscall.Signal); ok {
				_ = syscall.Kill(pid, number)
			}
		}
	}()
	out.follow()
	report.ExitCode = reap(pid)
	out.drain()
	report.Finished = time.Now().UTC()
	report.Results, report.Note = s.results()
	s.write(report)
	return report.ExitCode
}

// start writes the files and starts the first command that can be, with its output to a
// descriptor; 0: with the launcher's own.
func (s Spec) start(out uintptr) (pid int, err error) {
	for _, f := range s.Files {
		if err := writeFile(f); err != nil {
			return 0, err
		}
	}
	command, program, err := s.choose()
	if err != nil {
		return 0, err
	}
	env := slices.Concat(os.Environ(), command.Env, []string{ResultsVar + "=" + s.Results})
	files := []uintptr{0, out, out}
	if out == 0 {
		files = []uintptr{0, 1, 2}
	}
	pid, err = syscall.ForkExec(program, command.Args, &syscall.ProcAttr{Env: unique(env), Files: files}) //nolint:gosec // what it is for
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", program, err)
	}
	return pid, nil
}

func writeFile(f File) error {
	err := os.MkdirAll(filepath.Dir(f.Path), 0o755) //nolint:gosec // in the run's own container
	if err == nil {
		err = os.WriteFile(f.Path, f.Data, os.FileMode(f.Mode).Perm())
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Path, err)
	}
	return nil
}

// choose returns the first command whose program is there, and the program's path.
func (s Spec) choose() (Command, string, error) {
	var missing []string
	for _, c := range s.Commands {
		if len(c.Args) == 0 {
			c.Args = s.Entrypoint
		}
		if len(c.Args) == 0 {
			return c, "", errors.New("the image has neither an entrypoint nor a command")
		}
		if c.Needs != "" {
			if _, ok := find(c.Needs); !ok {
				if !slices.Contains(missing, c.Needs) {
					missing = append(missing, c.Needs)
				}
				continue
			}
		}
		program, ok := find(c.Args[0])
		if !ok {
			return c, "", fmt.Errorf("the image has no program %q", c.Args[0])
		}
		return c, program, nil
	}
	return Command{}, "", fmt.Errorf("the image has none of the programs that could run this: %q", missing)
}

// find returns the path of a program, as a shell finds it.
func find(name string) (string, bool) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		// An empty entry is the working directory for a shell; here it is nothing.
		if file := filepath.Join(dir, name); filepath.IsAbs(dir) && executable(file) {
			return file, true
		}
	}
	return "", false
}

func executable(file string) bool {
	info, err := os.Stat(file) //nolint:gosec // in the run's own container
	const execute = 1
	return err == nil && info.Mode().IsRegular() && syscall.Access(file, execute) == nil
}

// unique drops all but the last entry of each name.
func unique(env []string) []string {
	last := make(map[string]int, len(env))
	for i, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		last[name] = i
	}
	kept := make([]string, 0, len(last))
	for i, entry := range env {
		if name, _, _ := strings.Cut(entry, "="); last[name] == i {
			kept = append(kept, entry)
		}
	}
	return kept
}

// reap waits for children, also for those that others left, until the process ends.
func reap(pid int) int {
	for {
		var status syscall.WaitStatus
		child, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return failedCode
		case child != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		case status.Exited():
			return status.ExitStatus()
		}
	}
}
