package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kiln/cmd/cli"
)

// asKiln, when set in the environment, makes the test's executable the program kiln.
const asKiln = "KILN_TEST_IS_KILN"

func TestMain(m *testing.M) {
	if os.Getenv(asKiln) != "" {
		main()
	}
	os.Exit(m.Run())
}

// installed copies this program as kiln to a folder, and beside it, or into the folder
// that is PATH, a kilnd that prints its name, arguments and a variable, and ends with 7.
func installed(t *testing.T, beside, inPath bool) (kiln, path string) {
	t.Helper()
	dir, path := t.TempDir(), t.TempDir()
	kiln = filepath.Join(dir, "kiln")
	copyProgram(t, kiln)
	for in, wanted := range map[string]bool{dir: beside, path: inPath} {
		if !wanted {
			continue
		}
		script := "#!/bin/sh\necho \"$0|$*|$KILN_LOG_LEVEL\"\nexit 7\n"
		if err := os.WriteFile(filepath.Join(in, daemon), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return kiln, path
}

func copyProgram(t *testing.T, to string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	file, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(file, from)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// call runs the program at kiln with a PATH.
func call(t *testing.T, kiln, path string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kiln, args...)
	cmd.Env = []string{asKiln + "=1", "PATH=" + path, "KILN_LOG_LEVEL=warn"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	return out.String(), errs.String(), code
}

func TestCommandsOfTheDaemonAreHandedOver(t *testing.T) {
	t.Parallel()
	kiln, path := installed(t, true, true)
	link := filepath.Join(t.TempDir(), "kiln")
	if err := os.Symlink(kiln, link); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"up"},
		{"up", "--help"},
		{"--help", "up"},
		{"worker", "--no-such-flag", "-x", "a b"},
		{"--log-level", "debug", "doctor", "-o", "json"},
		{"--log-level=debug", "--config", "/nowhere.yaml", "plan", "-f", "-"},
		{"provision", "--", "ls"},
		{"context"},
		{"config-table"},
	} {
		for _, program := range []string{kiln, link} {
			out, errs, code := call(t, program, path, args...)
			if want := filepath.Join(filepath.Dir(kiln), daemon) + "|" + strings.Join(args, " ") + "|warn\n"; out != want || code != 7 {
				t.Errorf("%v: exit code %d: %s%s, want 7 and %s", args, code, out, errs, want)
			}
		}
	}
	if out, _, code := call(t, kiln, path, "build", "up"); code != cli.ExitUsage || out != "" {
		t.Errorf("kiln build up: exit code %d: %s, want the client's own 2", code, out)
	}
}

func TestTheDaemonIsLookedForInPathToo(t *testing.T) {
	t.Parallel()
	kiln, path := installed(t, false, true)
	out, errs, code := call(t, kiln, path, "up")
	if want := filepath.Join(path, daemon) + "|up|warn\n"; out != want || code != 7 {
		t.Errorf("exit code %d: %s%s, want 7 and %s", code, out, errs, want)
	}
}

func TestWithoutTheDaemonTheClientSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	kiln, path := installed(t, false, false)
	out, errs, code := call(t, kiln, path, "--log-level", "debug", "up", "--data-dir", "x")
	want := "kiln: `kiln up` needs the program kilnd, which was not found in " + filepath.Dir(kiln) + " or in PATH; this is only the client\n"
	if code != cli.ExitUsage || out != "" || errs != want {
		t.Errorf("exit code %d: %s%s, want 2 and %s", code, out, errs, want)
	}
	if _, errs, code := call(t, kiln, path, "build"); code != cli.ExitUsage || !strings.Contains(errs, "--file") {
		t.Errorf("kiln build: exit code %d: %s", code, errs)
	}
}
