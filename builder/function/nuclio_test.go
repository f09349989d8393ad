package function_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/nuclio"
)

func resolveNuclio(t *testing.T, c function.Config, in function.Input, kind, fields string) (builder.Request, nuclio.Function) {
	t.Helper()
	in.Function = json.RawMessage(`{"kind": "` + kind + `", "metadata": {"name": "my_func", "project": "demo"}, "spec": {` + fields + `}}`)
	req, err := function.Resolve(c, in)
	if err != nil {
		t.Fatalf("%s: %v", fields, err)
	}
	if req.Nuclio == nil || req.Decision.Build {
		t.Fatalf("%s: got %+v, want no build and a function of Nuclio", fields, req)
	}
	f, err := req.Nuclio.Function(nil)
	if err != nil {
		t.Fatal(err)
	}
	return req, f
}

// buildOf returns spec.build of the configuration.
func buildOf(f nuclio.Function) map[string]any {
	spec, _ := f.Config["spec"].(map[string]any)
	build, _ := spec["build"].(map[string]any)
	return build
}

func TestNuclioGetsWhatTheFunctionAdds(t *testing.T) {
	t.Parallel()
	c := function.Config{MLRunVersion: "1.7.0", ImagesRegistry: "registry.example.com", RegistrySecret: "push-secret"}
	for _, kind := range []string{"nuclio", "remote", "serving"} {
		req, f := resolveNuclio(t, c, function.Input{ForceBuild: true, SkipDeployed: true}, kind,
			`"image": "mlrun/mlrun", "build": {"commands": ["ls"], "requirements": ["pandas", "# not this"], "functionSourceCode": "eA==", "extra": "USER 1"}`)
		want := map[string]any{
			"baseImage": "registry.example.com/mlrun/mlrun:1.7.0", "noBaseImagesPull": true, "functionSourceCode": "eA==",
			"commands": []any{"ls", "python -m pip install 'mlrun[complete]==1.7.0' pandas"},
		}
		if diff := cmp.Diff(want, buildOf(f)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
		if f.Name != "demo-my-func" || f.Config["spec"].(map[string]any)["imagePullSecrets"] != "push-secret" {
			t.Errorf("%s: got %s %v", kind, f.Name, f.Config["spec"])
		}
		if got := "adds 1 command and 1 requirement to spec.image mlrun/mlrun. Not used: spec.build.extra."; !strings.HasSuffix(req.Decision.Reason, got) {
			t.Errorf("reason %q", req.Decision.Reason)
		}
		if req.Decision.Image != "registry.example.com/mlrun/mlrun:1.7.0" {
			t.Errorf("image %q", req.Decision.Image)
		}
	}
}

func TestTheBaseOfNuclioFollowsItsOwnOrder(t *testing.T) {
	t.Parallel()
	c := function.Config{Registry: "h.example/team", MLRunVersion: "1.7.0", Projects: map[string]function.Project{"demo": {DefaultImage: ".project:1"}}}
	for fields, want := range map[string]any{
		`"config": {"spec.build.baseImage": "a/config:1"}, "image": "a/image:1", "build": {"base_image": "a/base:1"}`: "a/config:1",
		`"base_spec": {"spec": {"build": {"baseImage": "a/spec:1"}}}, "image": "a/image:1"`:                           "a/spec:1",
		`"image": ".image:1", "build": {"base_image": "a/base:1"}`:                                                    "h.example/team/image:1",
		`"build": {"base_image": "a/base:1"}`:                                                                         "a/base:1",
		`"build": {"requirements": ["x"]}`:                                                                            "h.example/team/project:1",
	} {
		if _, f := resolveNuclio(t, c, function.Input{}, "nuclio", fields); buildOf(f)["baseImage"] != want {
			t.Errorf("%s: base %v, want %v", fields, buildOf(f)["baseImage"], want)
		}
	}
	c.Projects = nil
	for fields, want := range map[string]any{
		``: "mlrun/mlrun:1.7.0",
		`"build": {"source": "git://h/r#b", "load_source_on_run": true}`: "mlrun/mlrun:1.7.0",
		`"build": {"source": "git://h/r#b"}`:                             nil,
		`"build": {"requirements": ["x"]}`:                               nil,
		`"build": {"commands": ["x"]}`:                                   nil,
	} {
		req, f := resolveNuclio(t, c, function.Input{}, "nuclio", fields)
		if buildOf(f)["baseImage"] != want || want == nil && req.Decision.Image != "python:3.9" {
			t.Errorf("%s: base %v, image %s, want %v", fields, buildOf(f)["baseImage"], req.Decision.Image, want)
		}
	}
}

func TestNuclioTakesBuildArgumentsForCredentialsAndHidesSecrets(t *testing.T) {
	t.Parallel()
	_, f := resolveNuclio(t, function.Config{}, function.Input{BuilderEnv: map[string]string{"GIT_TOKEN": "tok-1"}}, "nuclio",
		`"env": [{"name": "DB_PASSWORD", "value": "pass-1"}, {"name": "LEVEL", "value": "3"}], "image": "a/b:1",
		 "build": {"source": "git://h/r#b", "builder_env": {"GIT_TOKEN": "not this", "API_KEY": "key-1", "MODE": "x"}, "extra_args": "--build-arg X_TOKEN=arg-1 --build-arg A=b"}`)
	entry, _ := buildOf(f)["codeEntryAttributes"].(map[string]any)
	if entry["username"] != "tok-1" {
		t.Errorf("credentials %v", entry)
	}
	slices.Sort(f.Secrets)
	if diff := cmp.Diff([]string{"arg-1", "key-1", "pass-1", "tok-1", "tok-1"}, f.Secrets); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}

func TestFaultsOfNuclioAreFaultsOfTheRequest(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]string{
		`"build": {"source": "git://h/r"}`:                      "spec.build.source: git branch or refs must be specified",
		`"build": {"source": "."}`:                              "spec.build.source: Nuclio cannot fetch",
		`"config": 3`:                                           "spec.config: is not an object",
		`"config": {"spec.build.baseImage": "A B"}`:             "spec.config[spec.build.baseImage]:",
		`"config": {"spec.build.commands": {}}, "image": "a/b"`: "spec.config[spec.build.commands]: must be a list",
		`"image": "UPPER CASE", "env": ["x"]`:                   "spec.image:",
	} {
		_, err := function.Resolve(function.Config{}, function.Input{Function: json.RawMessage(
			`{"kind": "nuclio", "metadata": {"name": "a", "project": "demo"}, "spec": {` + fields + `}}`)})
		if builder.KindOf(err) != builder.KindInvalidRequest || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", fields, err, want)
		}
	}
}
