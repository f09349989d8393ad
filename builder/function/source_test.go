package function_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/function"
)

// resolveJob resolves a function with these keys of spec.build.
func resolveJob(config function.Config, in function.Input, build string) (builder.Request, error) {
	if config.Registry == "" {
		config.Registry = "registry.example.com/team"
	}
	in.Function = json.RawMessage(job(build))
	return function.Resolve(config, in)
}

func TestSourcesAreTakenByTheirForm(t *testing.T) {
	t.Parallel()
	digest := strings.Repeat("0f", 32)
	for source, want := range map[string]string{
		"git://github.com/a/b":                     "",
		"git://github.com/a/b.git#refs/heads/main": "",
		"git+https://github.com/a/b@x#main":        "",
		"git+ssh://git@github.com/a/b":             "",
		"ssh://git@github.com/a/b":                 "",
		"git@github.com:a/b":                       "",
		"https://github.com/a/b.git#v1":            "",
		"https://h.example/a.tar.gz?sig=/x/y":      "",
		"http://h.example/a.zip":                   "",
		"s3://bucket/dir/a.tar.gz":                 "",
		"v3io:///path/a.zip":                       "",
		"context://sha256-" + digest + ".tar.gz":   "",
		"context://sha256-" + digest + ".zip":      "is not context://sha256-<64 hex digits>.tar.gz",
		"context://../x.tar.gz":                    "is not context://sha256-<64 hex digits>.tar.gz",
		"https://github.com/a/b":                   "must be a compressed",
		"s3://bucket/dir/":                         "must be a compressed",
		"folder":                                   "must be a compressed",
		".hidden":                                  "must be a compressed",
		"./a.tar.gz":                               "is a path",
		"/a/b.zip":                                 "is a path",
		"main.py":                                  "is a path",
		".":                                        "stands for the project's source",
		"./":                                       "stands for the project's source",
		"store://artifacts/p/code":                 "store:// names an artifact of MLRun",
		"git://h/a b":                              "holds white space",
		"git://h/a\u0000b":                         "holds white space or control characters",
		"git://h/" + strings.Repeat("a", 5000):     "is longer than 4096 bytes",
	} {
		text := jsonText(source)
		req, err := resolveJob(function.Config{}, function.Input{}, `"source": `+text)
		switch {
		case want == "" && (err != nil || req.Source == nil || req.Source.URL != source):
			t.Errorf("source %q is refused: %v", source, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || len(faults(t, err)) != 1):
			t.Errorf("source %q: got %v, want one fault with %q", source, err, want)
		}
	}
}

func TestSourceThatIsLoadedOnRunStaysOutOfTheImage(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"git://h/a", "./a.zip", "/a/b.zip", ".", "store://artifacts/p/code"} {
		req, err := resolveJob(function.Config{}, function.Input{}, `"load_source_on_run": true, "commands": ["x"], "source": "`+source+`"`)
		if err != nil || !req.Decision.Build || req.Source != nil {
			t.Errorf("source %q: got %+v, %v; want a build without source", source, req.Source, err)
		}
	}
	req, err := function.Resolve(function.Config{Registry: "h.example"}, function.Input{Function: json.RawMessage(
		`{"kind": "application", "metadata": {"name": "a"}, "spec": {"build": {"source": "git://h/a", "load_source_on_run": true}}}`)})
	if err != nil || req.Source == nil {
		t.Errorf("application: got %+v, %v; want its source at build time", req.Source, err)
	}
	_, err = function.Resolve(function.Config{Registry: "h.example"}, function.Input{Function: json.RawMessage(
		`{"kind": "spark", "metadata": {"name": "a"}, "spec": {"build": {"source": "git://h/a", "load_source_on_run": true}}}`)})
	if err == nil || !strings.Contains(err.Error(), "spec.build.load_source_on_run: ") {
		t.Errorf("spark: got %v, want a fault", err)
	}
}

func TestTargetFolderFollowsMLRun(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]string{
		"": "/home/mlrun_code/", "rel": "/home/mlrun_code/rel", "./a/b": "/home/mlrun_code/a/b", ".": "/home/mlrun_code/",
		"/opt/code": "/opt/code", "/opt/code/": "/opt/code/", "/": "", "../x": "", "/a/../../b": "", `/a"b`: "", "/a$b": "", "/a\nb": "",
	} {
		text := jsonText(dir)
		req, err := resolveJob(function.Config{}, function.Input{}, `"source": "git://h/a", "source_code_target_dir": `+text)
		if (err == nil) != (want != "") || err == nil && req.Source.Target != want {
			t.Errorf("target %q: got %+v, %v; want %q", dir, req.Source, err, want)
		}
	}
	object := `{"kind": "job", "metadata": {"name": "a"}, "spec": {"image": "b:1", "clone_target_dir": "old", "build": {"source": "git://h/a"%s}}}`
	for build, want := range map[string]string{"": "/home/mlrun_code/old", `, "source_code_target_dir": "new"`: "/home/mlrun_code/new"} {
		req, err := function.Resolve(function.Config{Registry: "h.example"}, function.Input{Function: json.RawMessage(strings.Replace(object, "%s", build, 1))})
		if err != nil || req.Source.Target != want {
			t.Errorf("clone_target_dir with %q: got %+v, %v; want %q", build, req.Source, err, want)
		}
	}
}

func TestSourceOwnerIsConfigured(t *testing.T) {
	t.Parallel()
	req, err := resolveJob(function.Config{SourceOwner: "1000:1001"}, function.Input{}, `"source": "git://h/a"`)
	if err != nil || req.Source.Owner != "1000:1001" {
		t.Errorf("got %+v, %v", req.Source, err)
	}
	if (function.Config{SourceOwner: "root"}).Validate() == nil {
		t.Error("a name is taken for an owner")
	}
}

func TestProjectDefaultsAreTakenWhereTheFunctionHasNone(t *testing.T) {
	t.Parallel()
	config := function.Config{
		Registry: "registry.example.com/team", NodeSelector: map[string]string{"a": "cfg", "b": "cfg", "c": "cfg"}, ServiceAccount: "cfg",
		Projects: map[string]function.Project{"churn": {
			DefaultImage: ".base:1", DefaultRequirements: []string{"numpy # why", " pandas"}, Source: "git://h/a#main", SourceTargetDir: "code",
			NodeSelector: map[string]string{"b": "project", "c": ""}, ServiceAccount: "builder", ServiceAccounts: []string{"builder", "other"},
		}},
	}
	in := function.Input{Function: json.RawMessage(`{"kind": "job", "metadata": {"name": "a", "project": "churn"}, "spec": {
		"node_selector": {"d": "fn", "a": null}, "build": {"source": "./", "requirements": ["pandas"]}}}`)}
	req, err := function.Resolve(config, in)
	if err != nil {
		t.Fatal(err)
	}
	if req.Base != "registry.example.com/team/base:1" || req.Source.URL != "git://h/a#main" || req.Source.Target != "/home/mlrun_code/code" {
		t.Errorf("got base %s and source %+v", req.Base, req.Source)
	}
	if diff := cmp.Diff([]string{"pandas", "numpy"}, req.Requirements); diff != "" {
		t.Errorf("requirements (-want +got):\n%s", diff)
	}
	want := builder.Scheduling{NodeSelector: map[string]string{"b": "project", "d": "fn"}, ServiceAccount: "builder"}
	if diff := cmp.Diff(want, req.Scheduling); diff != "" {
		t.Errorf("scheduling (-want +got):\n%s", diff)
	}
	in.SkipDeployed = true
	if req, err = function.Resolve(config, in); err != nil || !req.Decision.Build {
		t.Errorf("the project's image counts as deployed: %+v, %v", req.Decision, err)
	}
	in.Function = json.RawMessage(`{"kind": "job", "metadata": {"name": "a", "project": "churn"}, "spec": {"service_account": "admin", "build": {"commands": ["x"]}}}`)
	if _, err = function.Resolve(config, in); err == nil || !strings.HasPrefix(faults(t, err)[0], "spec.service_account: ") {
		t.Errorf("got %v, want a fault of the service account", err)
	}
}

func TestFaultsOfProjectDefaultsAreFound(t *testing.T) {
	t.Parallel()
	err := function.Config{Projects: map[string]function.Project{"p": {
		DefaultImage: "A b", DefaultRequirements: []string{"a", "b\x00"}, Source: "/a.zip", SourceTargetDir: "../..",
		ServiceAccount: "A", ServiceAccounts: []string{"ok", "-"},
	}}}.Validate()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, field := range []string{
		"configuration of project p: default_image: ", "default_requirements[1]: ", "source: ", "source_code_target_dir: ",
		"default_service_account: ", "allowed_service_accounts[1]: ",
	} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("error lacks %q:\n%v", field, err)
		}
	}
}

func TestSchedulingIsReadAsTheFunctionSays(t *testing.T) {
	t.Parallel()
	object := `{"kind": "job", "verbose": true, "metadata": {"name": "a"}, "spec": {"image": "b:1", "node_name": "n1", "priority_class_name": "high",
		"affinity": {"podAffinity": { }}, "tolerations": [{"key": "gpu"}], "service_account": "sa", "build": {"commands": ["x"], "secret": "own",
		"extra_args": "--build-arg TOKEN=a1 --snapshot-mode redo"}}}`
	req, err := function.Resolve(function.Config{Registry: "h.example", RegistrySecret: "default"}, function.Input{
		Function: json.RawMessage(object), Secrets: []string{"KEY"}, BuilderEnv: map[string]string{"A": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := builder.Scheduling{
		NodeName: "n1", PriorityClass: "high", ServiceAccount: "sa",
		Affinity: json.RawMessage(`{"podAffinity":{}}`), Tolerations: json.RawMessage(`[{"key":"gpu"}]`),
	}
	if diff := cmp.Diff(want, req.Scheduling); diff != "" {
		t.Errorf("scheduling (-want +got):\n%s", diff)
	}
	if !req.Verbose || req.RegistrySecret != "own" || len(req.Secrets) != 1 {
		t.Errorf("got verbose %t, secret %q, secrets %q", req.Verbose, req.RegistrySecret, req.Secrets)
	}
	args := []builder.Arg{{Name: "A", Value: "1"}, {Name: "TOKEN", Value: "a1", Secret: true}}
	if diff := cmp.Diff(args, req.BuildArgs); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"--snapshot-mode=redo"}, req.Flags); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
	for _, spec := range []string{
		`"affinity": [1]`, `"affinity": "x"`, `"tolerations": {"a": 1}`, `"node_selector": {"a": 1}`, `"node_name": "-"`, `"service_account": "A B"`,
		`"priority_class_name": 1`,
	} {
		object := `{"kind": "job", "metadata": {"name": "a"}, "spec": {"image": "b:1", ` + spec + `, "build": {"commands": ["x"]}}}`
		_, err := function.Resolve(function.Config{Registry: "h.example"}, function.Input{Function: json.RawMessage(object)})
		if err == nil || len(faults(t, err)) != 1 {
			t.Errorf("%s: got %v, want one fault", spec, err)
		}
	}
}

func TestRegistrySecretFollowsTheTarget(t *testing.T) {
	t.Parallel()
	config := function.Config{Registry: "registry.example.com/team", RegistrySecret: "default"}
	for image, want := range map[string]string{
		"": "default", ".short": "default", "registry.example.com/other/a:1": "default", "https://registry.example.com/other/a:1": "default",
		"ghcr.io/a/b": "", "registry.example.com.evil.io/a/b": "", "registry.example.com:443/a/b": "",
	} {
		req, err := resolveJob(config, function.Input{}, `"commands": ["x"], "image": "`+image+`"`)
		if err != nil || req.RegistrySecret != want {
			t.Errorf("image %q: got %q, %v; want %q", image, req.RegistrySecret, err, want)
		}
	}
	if _, err := resolveJob(config, function.Input{}, `"commands": ["x"], "secret": "../other"`); err == nil {
		t.Error("a path is taken for the name of a secret")
	}
}
