package run

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

var update = flag.Bool("update", false, "write golden files")

var testImage = "registry.example.com/team/func:1@sha256:" + strings.Repeat("ab", 32)

// input returns one that resolves; text is the function object, the rest is the test's.
func input(function string) Input {
	return Input{RunID: strings.Repeat("0123456789abcdef", 4), Attempt: 1, Image: testImage, Function: json.RawMessage(function)}
}

// TestPlansAreThoseOfTheGoldenFiles reads testdata/plans/*.json: an Input, without the
// identity, and the plan that it resolves to, in a file beside it.
func TestPlansAreThoseOfTheGoldenFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/plans/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := input("")
			if err := json.Unmarshal(raw, &in); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".json") + ".golden"
			plan, err := Resolve(in)
			got := shown(t, plan, err)
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// shown is a plan for people: without the bootstrap's text, files as text.
func shown(t *testing.T, plan Plan, err error) []byte {
	t.Helper()
	if err != nil {
		return []byte(err.Error() + "\n")
	}
	type file struct{ Path, Text string }
	var files []file
	for _, f := range plan.Files {
		text := string(f.Data)
		if text == bootstrap {
			text = "(bootstrap)"
		}
		files = append(files, file{f.Path, text})
	}
	plan.Files = nil
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(map[string]any{"Plan": plan, "Files": files}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestFaultsAreAllReportedWithTheirPath(t *testing.T) {
	t.Parallel()
	in := input(`{"kind": "nuclio", "metadata": {"name": "f"}, "spec": {
		"command": "-c evil", "env": [{"name": "A B"}, {"name": "C", "valueFrom": {"secretKeyRef": {}}}],
		"resources": {"limits": {"nvidia.com/gpu": 99999}}, "volumes": [{}],
		"build": {"source": "git://x/y.git", "load_source_on_run": true, "source_code_target_dir": "/proc/x"}}}`)
	in.Run = Request{
		Name: "--from-env", Handler: "os;rm", Workdir: "../..", Timeout: -1, Env: map[string]string{"": "x"},
		Parameters: map[string]json.RawMessage{"p": json.RawMessage("{")}, Resources: Resources{Memory: 1 << 40},
	}
	in.Image, in.RunID, in.Attempt, in.Config.Max.Memory = "image:tag", "short", 0, 1<<30
	_, err := Resolve(in)
	if builder.KindOf(err) != builder.KindInvalidRequest {
		t.Fatalf("got %v (%s)", err, builder.KindOf(err))
	}
	for _, path := range []string{
		"run_id", "attempt", "image", "kind", "run.name", "run.handler", "run.workdir", "run.timeout", "run.env", "run.parameters",
		"run.resources.memory", "run.resources.gpus", "spec.command", "spec.env[0]", "spec.env[1]", "spec.volumes",
		"spec.build.source_code_target_dir",
	} {
		if !strings.Contains("\n"+strings.TrimPrefix(err.Error(), "checking the run: "), "\n"+path+": ") {
			t.Errorf("no fault of %s in\n%v", path, err)
		}
	}
}

func TestWrongTypesNameTheirPath(t *testing.T) {
	t.Parallel()
	for function, want := range map[string]string{
		`[]`:                           "function: is not an object",
		`{"spec": {"args": "x"}}`:      "spec.args",
		`{"spec": {"env": [1]}}`:       "spec.env",
		`{"spec": {"command": ["x"]}}`: "spec.command",
		`{"metadata": {"name": "f"}, "spec": {"resources": {"limits": {"memory": "4Zi"}}}}`: "4Zi",
		`{"metadata": {"name": "f"}, "spec": {"build": {"functionSourceCode": "***"}}}`:     "spec.build.functionSourceCode",
	} {
		if _, err := Resolve(input(function)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Resolve(%s) = %v, want %q in it", function, err, want)
		}
	}
}

func TestLongValuesAreRefusedOrGoByFile(t *testing.T) {
	t.Parallel()
	function := func(code []byte) string {
		raw, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"name": "f"}, "spec": map[string]any{"build": map[string]any{"functionSourceCode": code}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	in := input(function(bytes.Repeat([]byte("# long\n"), 20000)))
	in.Run.Args = []string{"x"}
	plan, err := Resolve(in)
	if err != nil {
		t.Fatal(err)
	}
	mlrun := plan.Commands[0]
	if diff := cmp.Diff([]string{"mlrun", "run", "--name", "f", "--from-env", codeFile, "x"}, mlrun.Args); diff != "" || len(mlrun.Env) != 0 {
		t.Errorf("code of 140 KB does not go by file: %v\n%s", mlrun, diff)
	}
	if len(plan.Files) != 1 || len(plan.Files[0].Data) != 140000 {
		t.Errorf("files are %d, want the code once", len(plan.Files))
	}
	long := strings.Repeat("x", maxString)
	for name, change := range map[string]func(*Input){
		"an argument": func(in *Input) { in.Run.Args = []string{long} },
		"a variable":  func(in *Input) { in.Run.Env = map[string]string{"A": long} },
		"a secret":    func(in *Input) { in.Secrets = map[string]string{"A": long} },
		"parameters": func(in *Input) {
			in.Run.Parameters = map[string]json.RawMessage{"a": json.RawMessage(`"` + long + `"`)}
		},
		"NUL":           func(in *Input) { in.Run.Args = []string{"a\x00b"} },
		"all arguments": func(in *Input) { in.Run.Args = strings.Split(strings.Repeat(long[:100000]+" ", 12), " ") },
	} {
		in := input(function([]byte("pass")))
		change(&in)
		if _, err := Resolve(in); builder.KindOf(err) != builder.KindInvalidRequest {
			t.Errorf("%s: %v, want invalid_request", name, err)
		}
	}
}

func TestQuantities(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"2": 2, "500m": 0.5, "4Gi": 4 << 30, "1.5G": 1.5e9, "0": 0} {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("parseQuantity(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "Gi", "-1", "1e99P", "NaN", "1 Gi", "4gi"} {
		if got, err := parseQuantity(text); err == nil {
			t.Errorf("parseQuantity(%q) = %v, want an error", text, got)
		}
	}
}

// FuzzResolve holds what must be true of every plan, whatever the strings are.
func FuzzResolve(f *testing.F) {
	f.Add(`{"metadata":{"name":"f"},"spec":{"command":"main.py {a}","args":["-x"]}}`, "h", "name", "a", `"v"`, "arg", "dir")
	f.Add(`{"metadata":{"name":"f"},"spec":{"mode":"pass","command":"sh {codefile}","build":{"functionSourceCode":"cGFzcw=="}}}`, "", "", "", "1", "{a}", "/x")
	f.Add(`{"metadata":{"name":"f"},"spec":{"build":{"source":"git://a/b","load_source_on_run":true}}}`, "m.f", "n", "p", "{}", "", "./sub")
	f.Fuzz(func(t *testing.T, function, handler, name, parameter, value, arg, workdir string) {
		in := input(function)
		in.Run = Request{
			Handler: handler, Name: name, Parameters: map[string]json.RawMessage{parameter: json.RawMessage(value)},
			Args: []string{arg}, Workdir: workdir, Env: map[string]string{parameter: value}, Labels: map[string]string{name: value},
		}
		in.Secrets = map[string]string{parameter: "secret-value"}
		plan, err := Resolve(in)
		if err != nil {
			if builder.KindOf(err) != builder.KindInvalidRequest {
				t.Fatalf("kind %s: %v", builder.KindOf(err), err)
			}
			return
		}
		again, _ := Resolve(in)
		if diff := cmp.Diff(plan, again); diff != "" {
			t.Fatalf("the same input gives another plan:\n%s", diff)
		}
		checkPlan(t, plan)
	})
}

func checkPlan(t *testing.T, plan Plan) {
	t.Helper()
	if len(plan.Commands) == 0 {
		t.Error("there is nothing to run")
	}
	for _, f := range plan.Files {
		if filepath.Clean(f.Path) != f.Path || !strings.HasPrefix(f.Path, functionDir+"/") {
			t.Errorf("file at %q", f.Path)
		}
	}
	if plan.Workdir != "" && (!filepath.IsAbs(plan.Workdir) || filepath.Clean(plan.Workdir) != plan.Workdir) {
		t.Errorf("workdir %q", plan.Workdir)
	}
	for _, c := range plan.Commands {
		if len(c.Args) > 0 && (c.Needs != c.Args[0] || strings.HasPrefix(c.Needs, "-")) {
			t.Errorf("command needs %q and runs %q", c.Needs, c.Args)
		}
		for _, arg := range c.Args {
			if strings.ContainsRune(arg, 0) {
				t.Errorf("argument %q", arg)
			}
		}
	}
	for _, v := range append(plan.Env, plan.Secrets...) {
		if strings.ContainsAny(v.Name, "=\x00") || v.Name == "" || strings.ContainsRune(v.Value, 0) {
			t.Errorf("variable %q", v)
		}
	}
}
