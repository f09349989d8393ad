package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"

	"kiln/cmd/cli"
)

// daemon is the program that runs and plans builds.
const daemon = "kilnd"

// daemonCmd is a command of kilnd.
type daemonCmd struct {
	Args []string `arg:"" optional:""`
}

// daemonCommand returns the name of the command when it is one of kilnd. Nothing is
// checked, and no file is read: kilnd does that.
func daemonCommand(parser *kong.Kong, args []string) string {
	trace, err := kong.Trace(parser, args)
	if err != nil {
		return ""
	}
	if command := trace.Selected(); command != nil && command.Passthrough {
		return command.Name
	}
	return ""
}

// becomeDaemon replaces this process by kilnd with the same arguments and environment.
// It returns only when it fails.
func becomeDaemon(command string) error {
	file, err := findDaemon()
	if err != nil {
		return cli.Usage(fmt.Errorf("`kiln %s` %w", command, err))
	}
	if err := syscall.Exec(file, os.Args, os.Environ()); err != nil { //nolint:gosec // the program beside this one, or the user's PATH
		return fmt.Errorf("start %s: %w", file, err)
	}
	return nil
}

// findDaemon looks beside the executable, where its links lead to, and then in PATH.
func findDaemon() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("needs the program %s, and where this one is cannot be told: %w", daemon, err)
	}
	dir := filepath.Dir(self)
	if file, err := exec.LookPath(filepath.Join(dir, daemon)); err == nil {
		return file, nil
	}
	file, err := exec.LookPath(daemon)
	if err != nil {
		return "", fmt.Errorf("needs the program %s, which was not found in %s or in PATH; this is only the client", daemon, dir)
	}
	return file, nil
}
