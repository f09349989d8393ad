package runtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/run"
)

func testExit(t *testing.T, h Harness) {
	t.Helper()
	for _, tc := range []struct {
		steps []string
		code  int
	}{{[]string{"out", "hello"}, 0}, {[]string{"out", "hello", "exit", "3"}, 3}, {[]string{"out", "hello", "signal", "9"}, 137}} {
		began := time.Now().Add(-2 * time.Second)
		plan := NewPlan(h.Image, t.Name()+strconv.Itoa(tc.code), tc.steps...)
		c := begin(t.Context(), h.Runner, plan)
		r := c.ok(t, tc.code)
		if !strings.HasSuffix(c.log.String(), "hello\n") {
			t.Errorf("log is %q", c.log)
		}
		if r.Started.Before(began) || r.Finished.Before(r.Started) || time.Since(r.Finished) < -2*time.Second || r.Started.Location() != time.UTC {
			t.Errorf("started %s, finished %s, after %s", r.Started, r.Finished, began)
		}
		if r.Results != nil {
			t.Errorf("results are %s", r.Results)
		}
		if len(c.started) != 1 {
			t.Errorf("Started was called %d times", len(c.started))
		} else if at := <-c.started; at.Before(began) || at.After(r.Finished.Add(2*time.Second)) {
			t.Errorf("Started was called with %s", at)
		}
	}
}

func testLines(t *testing.T, h Harness) {
	t.Helper()
	c := begin(t.Context(), h.Runner, h.plan(t, "lines", "2000", "part", "the ", "part", "end"))
	c.ok(t, 0)
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	want.WriteString("the end\n")
	// What the runner says comes first.
	_, got, _ := strings.Cut("\n"+c.log.String(), "\nline 0\n")
	if diff := cmp.Diff(want.String(), "line 0\n"+got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

type brokenLog struct{}

func (brokenLog) Write([]byte) (int, error) { return 0, errors.New("no") }

func testBrokenLog(t *testing.T, h Harness) {
	t.Helper()
	for i, watch := range []run.Watch{{Logs: brokenLog{}}, {}} {
		plan := NewPlan(h.Image, t.Name()+strconv.Itoa(i), "lines", "10")
		if r, err := h.Runner.Run(t.Context(), plan, watch); err != nil || r.ExitCode != 0 {
			t.Errorf("exit code %d, error %v", r.ExitCode, err)
		}
	}
}

func testResults(t *testing.T, h Harness) {
	t.Helper()
	most := fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", h.MaxResults-len(`{"a":""}`)))
	for i, tc := range []struct{ left, want string }{
		{`{"accuracy": 0.9, "text": "<&>\u0000 é"}`, `{"accuracy":0.9,"text":"<&>\u0000 é"}`},
		{most, most},
		{"[1]", ""},
		{"{", ""},
		{`{"a": "` + strings.Repeat("x", h.MaxResults+1000) + `"}`, ""},
	} {
		c := begin(t.Context(), h.Runner, NewPlan(h.Image, t.Name()+strconv.Itoa(i), "results", tc.left, "exit", "1"))
		var want, got any
		r := c.ok(t, 1)
		_, _ = json.Unmarshal([]byte(tc.want), &want), json.Unmarshal(r.Results, &got)
		if diff := cmp.Diff(want, got); diff != "" || (tc.want == "") != (r.Results == nil) {
			t.Errorf("results are %.100q, want %.100q", r.Results, tc.want)
		}
	}
}

func testInputs(t *testing.T, h Harness) {
	t.Helper()
	file := "/run/kiln/out/some/file"
	plan := h.plan(t, "env", "A", "env", "TOKEN", "env", "PATH", "env", "FROM_IMAGE", "env", "C", "cat", file, "pwd", "env", "HOST_ONLY")
	plan.Env = []run.Var{{Name: "A", Value: "plan"}, {Name: "C", Value: "plan"}}
	plan.Commands[0].Env = []run.Var{{Name: "C", Value: "command"}}
	plan.Secrets = []run.Var{{Name: "TOKEN", Value: "hush-1234"}}
	plan.Files = []run.File{{Path: file, Data: []byte("in the file\n"), Mode: 0o600}}
	plan.Workdir = "/home"
	c := begin(t.Context(), h.Runner, plan)
	c.ok(t, 0)
	if want := "plan\nhush-1234\n/bin\nimage\ncommand\nin the file\n/home\n\n"; !strings.HasSuffix(c.log.String(), want) {
		t.Errorf("log is %q, want %q at its end", c.log, want)
	}
	own := NewPlan(h.Image, t.Name()+"own", "pwd")
	c = begin(t.Context(), h.Runner, own)
	if c.ok(t, 0); !strings.HasSuffix(c.log.String(), "/home\n") {
		t.Errorf("the image's folder is %q", c.log)
	}
}

func testHostile(t *testing.T, h Harness) {
	t.Helper()
	hostile := []string{
		"", " ", "--help", "$(id)", "`id`", "';id;'", `"\"`, "$HOME", "$(PATH)", "a\nb", "\t\\n", "%s%d", "{{.}}", "é世界", "\x1b[31mred", "*", "~", "-c",
	}
	steps := make([]string, 0, 2*len(hostile)+4)
	for _, text := range hostile {
		steps = append(steps, "out", text)
	}
	want := strings.Join(hostile, "\n") + "\n"
	plan := h.plan(t, append(steps, "env", "HOSTILE", "env", "SECRET")...)
	all := strings.Join(hostile, "|")
	plan.Env = []run.Var{{Name: "HOSTILE", Value: all}}
	plan.Secrets = []run.Var{{Name: "SECRET", Value: "s" + all}}
	plan.Name, plan.Project, plan.Function = "x\ny", "../../x", "$(id)"
	plan.Labels = map[string]string{"a b": "c\nd", "": strings.Repeat("long", 100)}
	c := begin(t.Context(), h.Runner, plan)
	c.ok(t, 0)
	if want += all + "\ns" + all + "\n"; !strings.HasSuffix(c.log.String(), want) {
		t.Errorf("log is\n%q, want at its end\n%q", c.log, want)
	}
}

func testChoice(t *testing.T, h Harness) {
	t.Helper()
	missing := run.Command{Needs: "mlrun", Args: []string{"mlrun", "run"}}
	probe := func(name, text string) run.Command {
		return run.Command{Needs: name, Args: []string{name, "out", text}}
	}
	for i, tc := range []struct {
		commands []run.Command
		want     string
	}{
		{[]run.Command{missing, probe("/nowhere/probe", "no"), probe("probe", "second"), probe("probe", "third")}, "second\n"},
		{[]run.Command{probe("/bin/probe", "absolute")}, "absolute\n"},
		{[]run.Command{{Args: []string{"/bin/probe", "out", "in any case"}}}, "in any case\n"},
		{[]run.Command{missing, {}}, "the entrypoint\n"},
	} {
		plan := NewPlan(h.Image, t.Name()+strconv.Itoa(i))
		plan.Commands = tc.commands
		c := begin(t.Context(), h.Runner, plan)
		if c.ok(t, 0); !strings.HasSuffix(c.log.String(), tc.want) {
			t.Errorf("log is %q, want %q", c.log, tc.want)
		}
	}
}

func testNothingToRun(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t)
	plan.Commands = []run.Command{{Needs: "mlrun", Args: []string{"mlrun"}}, {Needs: "python3", Args: []string{"python3"}}}
	c := begin(t.Context(), h.Runner, plan)
	text := c.fails(t, builder.KindInvalidRequest)
	for _, program := range []string{"mlrun", "python3"} {
		if !strings.Contains(text, program) {
			t.Errorf("error %q does not name %s", text, program)
		}
	}
	// Where there are no images, it is the process that finds out.
	if h.Missing != "" && len(c.started) != 0 {
		t.Error("Started was called")
	}
}

func testIdentity(t *testing.T, h Harness) {
	t.Helper()
	for name, change := range map[string]func(*run.Plan){
		"no run id": func(p *run.Plan) { p.RunID = "" }, "a path": func(p *run.Plan) { p.RunID = "../" + p.RunID[3:] },
		"no attempt": func(p *run.Plan) { p.Attempt = 0 }, "an image by tag": func(p *run.Plan) { p.Image = "image:latest" },
	} {
		plan := h.plan(t, "id")
		change(&plan)
		if _, err := h.Runner.Run(t.Context(), plan, run.Watch{}); builder.KindOf(err) != builder.KindInvalidRequest {
			t.Errorf("%s: %v, want invalid_request", name, err)
		}
	}
}

func testMissing(t *testing.T, h Harness) {
	t.Helper()
	if h.Missing == "" {
		t.Skip("this runner has no images")
	}
	plan := h.plan(t, "id")
	plan.Image = h.Missing
	text := begin(t.Context(), h.Runner, plan).fails(t, builder.KindBaseNotFound)
	if !strings.Contains(text, h.Missing[:10]) {
		t.Errorf("error %q does not name the image", text)
	}
	h.nothing(t)
	// With the image it is as if nobody had asked before.
	plan.Image = h.Image
	begin(t.Context(), h.Runner, plan).ok(t, 0)
}

func testMemory(t *testing.T, h Harness) {
	t.Helper()
	if !h.Memory {
		t.Skip("this runner has no memory limits")
	}
	c := begin(t.Context(), h.Runner, h.plan(t, "out", "before", "alloc", "200", "out", "after"))
	c.fails(t, builder.KindOutOfMemory)
	if log := c.log.String(); !strings.Contains(log, "before\n") || strings.Contains(log, "after\n") {
		t.Errorf("log is %q", log)
	}
}

func testDisk(t *testing.T, h Harness) {
	t.Helper()
	if !h.Disk {
		t.Skip("this runner has no disk limits")
	}
	plan := h.plan(t, "fill", "96", "wait")
	plan.Limits.Disk = 32 << 20
	begin(t.Context(), h.Runner, plan).fails(t, builder.KindDiskFull)
}

// nothing checks that nothing of attempts is left.
func (h Harness) nothing(t *testing.T) {
	t.Helper()
	if h.Leftovers == nil {
		return
	}
	if left := h.Leftovers(); len(left) > 0 {
		slices.Sort(left)
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

func testApart(t *testing.T, h Harness) {
	t.Helper()
	calls := make([]*call, 0, 4)
	for i := range 4 {
		plan := NewPlan(h.Image, t.Name()+strconv.Itoa(i/2), "out", fmt.Sprint("call ", i), "results", fmt.Sprintf(`{"i": %d}`, i), "exit", strconv.Itoa(i))
		plan.Attempt = 1 + i%2
		calls = append(calls, begin(t.Context(), h.Runner, plan))
	}
	for i, c := range calls {
		r := c.ok(t, i)
		if got := strings.Count(c.log.String(), "call "); got != 1 || !strings.HasSuffix(c.log.String(), fmt.Sprintf("call %d\n", i)) {
			t.Errorf("log of %d is %q", i, c.log)
		}
		if want := fmt.Sprintf(`{"i":%d}`, i); string(r.Results) != want {
			t.Errorf("results of %d are %s", i, r.Results)
		}
	}
}

// shutdown returns a context that ends as that of a program that stops.
func shutdown(ctx context.Context) (stopped context.Context, stop func(error)) {
	stopped, cancel := context.WithCancelCause(ctx)
	return stopped, func(cause error) { cancel(fmt.Errorf("stopping: %w", cause)) }
}
