package run

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// called runs the handler by the bootstrap, in the Python of this machine, as the plan
// says but in a folder of the test's, and returns what it printed and its results.
func called(t *testing.T, code string, run Request) (out, results string, ok bool) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: no python3; get it with: apt-get install python3")
	}
	fn, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": "f"}, "spec": map[string]any{"build": map[string]any{"functionSourceCode": base64.StdEncoding.EncodeToString([]byte(code))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	in := input(string(fn))
	in.Run = run
	plan, err := Resolve(in)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, f := range plan.Files {
		data := bytes.ReplaceAll(f.Data, []byte(functionDir), []byte(dir))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.Path)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := plan.Commands[1].Args[1:]
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], functionDir, dir)
	}
	cmd := exec.CommandContext(t.Context(), python, args...)
	cmd.Env, cmd.Dir = append(os.Environ(), "KILN_RESULTS="+filepath.Join(dir, "results"), "PYTHONDONTWRITEBYTECODE=1"), dir
	text, err := cmd.CombinedOutput()
	raw, _ := os.ReadFile(filepath.Join(dir, "results"))
	return string(text), string(raw), err == nil
}

func TestBootstrapCallsHandlers(t *testing.T) {
	t.Parallel()
	p := map[string]json.RawMessage{"a": json.RawMessage(`"'; import os; \"\n\\"`), "n": json.RawMessage(`3`), "other": json.RawMessage(`1`)}
	for name, tc := range map[string]struct{ code, handler, out, results string }{
		"parameters": {"def h(a, n=1):\n    print(a, n)\n    return n * 2", "h", "'; import os; \"\n\\ 3\n", `{"return": 6}`},
		"everything": {"def h(**all):\n    return all", "h", "", `{"data": "s3://b/x", "a": "'; import os; \"\n\\", "n": 3, "other": 1}`},
		"context": {
			"def h(context, n):\n    context.logger.info('hi', n=n)\n    context.log_result('x', float('nan'))\n    return {'y': (1, 2)}", "h",
			"info hi n=3\n", `{"x": "nan", "y": [1, 2]}`,
		},
		"inputs":      {"def h(context, data):\n    print(data, context.inputs, context.parameters['n'])", "h", "s3://b/x {'data': 's3://b/x'} 3\n", ""},
		"method":      {"class C:\n    def __init__(self, context):\n        self.n = context.parameters['n']\n    def m(self, n):\n        return self.n + n", "C::m", "", `{"return": 6}`},
		"of a module": {"import nothing_else", "json.dumps", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, results, ok := called(t, tc.code, Request{Handler: tc.handler, Parameters: p, Inputs: map[string]string{"data": "s3://b/x"}})
			if name == "of a module" {
				if ok || !strings.Contains(out, "nothing_else") {
					t.Errorf("code that does not load: %v\n%s", ok, out)
				}
				return
			}
			if diff := cmp.Diff(tc.out, out); diff != "" || !ok {
				t.Errorf("output, %v (-want +got):\n%s", ok, diff)
			}
			if diff := cmp.Diff(decoded(t, tc.results), decoded(t, results)); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	if text == "" {
		return nil
	}
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}

func TestBootstrapFailsAsTheHandlerDoes(t *testing.T) {
	t.Parallel()
	out, results, ok := called(t, "def h(context):\n    context.log_result('before', 1)\n    raise ValueError('no luck')", Request{Handler: "h"})
	if ok || !strings.Contains(out, "ValueError: no luck") || results != `{"before": 1}` {
		t.Errorf("ok %v, results %s, output:\n%s", ok, results, out)
	}
	if out, _, ok := called(t, "x = 1", Request{Handler: "nope"}); ok || !strings.Contains(out, "there is no handler nope") {
		t.Errorf("ok %v, output:\n%s", ok, out)
	}
	if out, results, ok := called(t, "def h():\n    return 'x' * 100000", Request{Handler: "h"}); !ok || results != "" || !strings.Contains(out, "left out") {
		t.Errorf("ok %v, results of %d bytes, output:\n%s", ok, len(results), out)
	}
	if out, _, ok := called(t, "import sys\nprint(sys.argv[1:])", Request{Args: []string{"a b", "$(x)"}}); !ok || out != "['a b', '$(x)']\n" {
		t.Errorf("a script without handler: %v\n%s", ok, out)
	}
}
