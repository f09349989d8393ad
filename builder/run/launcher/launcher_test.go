package launcher

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain makes this program the launcher when it is told what to launch.
func TestMain(m *testing.M) {
	if spec := os.Getenv("LAUNCH"); spec != "" {
		os.Exit(Main(spec))
	}
	os.Exit(m.Run())
}

// launched is a launcher at work.
type launched struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	out  strings.Builder
	spec Spec
}

func launch(t *testing.T, spec Spec, env ...string) *launched {
	t.Helper()
	dir := t.TempDir()
	l := &launched{t: t, dir: dir, spec: spec}
	l.spec.Results, l.spec.Report, l.spec.Started = filepath.Join(dir, "results"), filepath.Join(dir, "report"), filepath.Join(dir, "started")
	if l.spec.MaxResults == 0 {
		l.spec.MaxResults = 1000
	}
	raw, err := json.Marshal(l.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "spec"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	l.cmd = exec.CommandContext(t.Context(), os.Args[0])
	l.cmd.Env = append([]string{"LAUNCH=" + filepath.Join(dir, "spec"), "PATH=relative:" + dir + "/bin:/usr/bin:/bin", "A=image"}, env...)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return l
}

// end waits for the end and returns the exit code, the report and the output.
func (l *launched) end() (code int, r Report, out string) {
	l.t.Helper()
	if err := l.cmd.Wait(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			l.t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	raw, err := os.ReadFile(l.spec.Report)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		l.t.Fatalf("report: %v\n%s", err, l.out.String())
	}
	return code, r, l.out.String()
}

func sh(script string, args ...string) Command {
	return Command{Args: append([]string{"sh", "-c", script, "sh"}, args...)}
}

func TestFirstCommandWithItsProgramIsStarted(t *testing.T) {
	t.Parallel()
	yes := Command{Needs: "sh", Args: []string{"sh", "-c", `echo "$A $B $1"; exit 3`, "sh", "$(id) 'x'"}, Env: []string{"A=command", "B=b"}}
	began := time.Now()
	code, r, out := launch(t, Spec{Commands: []Command{{Needs: "no-such-program", Args: []string{"no-such-program"}}, yes, sh("echo third")}}).end()
	if code != 3 || r.ExitCode != 3 || out != "command b $(id) 'x'\n" || r.Failure != "" {
		t.Errorf("code %d, report %+v, output %q", code, r, out)
	}
	if r.Started.Before(began.Add(-time.Second)) || r.Finished.Before(r.Started) {
		t.Errorf("times %s and %s", r.Started, r.Finished)
	}
}

func TestImageOwnEntrypoint(t *testing.T) {
	t.Parallel()
	if code, _, out := launch(t, Spec{Commands: []Command{{}}, Entrypoint: []string{"sh", "-c", "echo own"}}).end(); code != 0 || out != "own\n" {
		t.Errorf("code %d, output %q", code, out)
	}
}

func TestNothingToStartIsSaid(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for want, spec := range map[string]Spec{
		`none of the programs that could run this: ["nope" "/nor/this"]`: {Commands: []Command{{Needs: "nope", Args: []string{"nope"}}, {Needs: "/nor/this", Args: []string{"x"}}}},
		"neither an entrypoint nor a command":                            {Commands: []Command{{}}},
		`no program "nope"`:                                              {Commands: []Command{{Args: []string{"nope"}}}},
		"start " + script:                                                {Commands: []Command{{Args: []string{script}}}},
		"write /proc/nope":                                               {Commands: []Command{sh("true")}, Files: []File{{Path: "/proc/nope", Data: []byte("x")}}},
	} {
		if code, r, _ := launch(t, spec).end(); code != failedCode || !strings.Contains(r.Failure, want) {
			t.Errorf("code %d, failure %q, want %q", code, r.Failure, want)
		}
	}
}

func TestFilesAndResults(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "deep", "er", "file")
	code, r, out := launch(t, Spec{
		Commands: []Command{sh(`cat "$1"; printf '{"a": [1,\n 2]}' >"$KILN_RESULTS"`, file)}, Files: []File{{Path: file, Data: []byte("content\n"), Mode: 0o640}},
	}, "KILN_RESULTS=/elsewhere").end()
	if code != 0 || out != "content\n" || string(r.Results) != `{"a":[1,2]}` || r.Note != "" {
		t.Errorf("code %d, output %q, report %+v", code, out, r)
	}
}

func TestResultsThatDoNotCountAreNoted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ script, note string }{
		"no JSON":   {`echo x >"$KILN_RESULTS"`, "no JSON object"},
		"a list":    {`echo '[1]' >"$KILN_RESULTS"`, "no JSON object"},
		"long":      {`head -c 2000 /dev/zero >"$KILN_RESULTS"`, "longer than 1000 bytes"},
		"a folder":  {`mkdir "$KILN_RESULTS"`, "cannot be read"},
		"a pipe":    {`mkfifo "$KILN_RESULTS"`, ""},
		"empty":     {`: >"$KILN_RESULTS"`, ""},
		"truncated": {`printf '{"a": "%0300d"}' 0 >"$KILN_RESULTS"`, "longer than what can be passed on"},
	} {
		spec := Spec{Commands: []Command{sh(tc.script)}}
		if name == "truncated" {
			spec.MaxReport = 300
		}
		if code, r, _ := launch(t, spec).end(); code != 0 || r.Results != nil || !strings.Contains(r.Note, tc.note) || (tc.note == "") != (r.Note == "") {
			t.Errorf("%s: code %d, report %+v", name, code, r)
		}
	}
}

func TestSignalsReachTheProcess(t *testing.T) {
	t.Parallel()
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	l := launch(t, Spec{Commands: []Command{sh(`trap 'echo bye; exit 5' TERM; echo >"$1"; while :; do sleep 0.05; done`, ready)}})
	// Reading ends once the shell has set its trap.
	if _, err := os.ReadFile(ready); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, r, out := l.end(); code != 5 || r.ExitCode != 5 || !strings.Contains(out, "bye") {
		t.Errorf("code %d, report %+v, output %q", code, r, out)
	}
}

func TestOutputThroughAPipe(t *testing.T) {
	t.Parallel()
	// A child that holds the pipe open must not hold up the end; whatever was written
	// before the end is there.
	began := time.Now()
	script := `sleep 30 & i=0; while [ $i -lt 2000 ]; do echo "line $i"; echo "err $i" >&2; i=$((i+1)); done; echo more >/dev/stdout; kill $!`
	code, _, out := launch(t, Spec{Pipe: true, Commands: []Command{sh(script)}}).end()
	if code != 0 || !strings.HasPrefix(out, "line 0\nerr 0\nline 1\n") || !strings.HasSuffix(out, "err 1999\nmore\n") || time.Since(began) > 20*time.Second {
		t.Errorf("code %d after %s, output ends in %q", code, time.Since(began), out[max(0, len(out)-50):])
	}
}

func TestDeathBySignal(t *testing.T) {
	t.Parallel()
	if code, r, _ := launch(t, Spec{Commands: []Command{sh("kill -9 $$")}}).end(); code != 137 || r.ExitCode != 137 {
		t.Errorf("code %d, report %+v, want 137", code, r)
	}
}

func FuzzCheckResults(f *testing.F) {
	f.Add([]byte(`{"a": 1}`))
	f.Add([]byte("\n {}"))
	f.Add([]byte(`{"a":1}{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		results, note := CheckResults(raw, 100)
		if results != nil && (note != "" || !json.Valid(results) || results[0] != '{' || len(results) > 100) {
			t.Errorf("CheckResults(%q) = %q, %q", raw, results, note)
		}
	})
}
