package function_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/function"
)

// resolveProject resolves the image of a project.
func resolveProject(t *testing.T, c function.Config, p function.ProjectImage) builder.Request {
	t.Helper()
	before := string(p.Object)
	object, err := p.Function()
	if err != nil {
		t.Fatal(err)
	}
	if string(p.Object) != before {
		t.Error("the project object was changed")
	}
	req, err := function.Resolve(c, function.Input{Function: object})
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestAProjectsImageIsMadeOfFlagsAlone(t *testing.T) {
	t.Parallel()
	c := function.Config{Registry: "registry.example.com/team", MLRunVersion: "1.7.0"}
	req := resolveProject(t, c, function.ProjectImage{Project: "my-proj", Requirements: []string{"vaderSentiment"}, Commands: []string{"ls"}})
	got := []any{
		req.Name, req.Project, req.Base, req.UserImage, req.Target, req.Commands, req.Requirements, req.Decision.Build, req.Rebuild,
	}
	want := []any{
		"mlrun--project--image--builder", "my-proj", "mlrun/mlrun:1.7.0", ".mlrun-project-image-my-proj",
		"registry.example.com/team/mlrun-project-image-my-proj:latest",
		[]string{"ls"},
		[]string{"mlrun[complete]==1.7.0", "vaderSentiment"},
		true, false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAProjectsImageIsMadeEvenOfItsBaseAlone(t *testing.T) {
	t.Parallel()
	req := resolveProject(t, function.Config{Registry: "h.example/a"}, function.ProjectImage{Project: "p"})
	if !req.Decision.Build || req.Base != "mlrun/mlrun" || !strings.Contains(req.Decision.Reason, "image of project p is made of") {
		t.Errorf("got %+v", req.Decision)
	}
}

func TestAProjectsImageStartsFromTheDefaultBase(t *testing.T) {
	t.Parallel()
	c := function.Config{
		Registry: "h.example/a", DefaultBaseImage: "own/base:1",
		Projects: map[string]function.Project{"p": {DefaultImage: ".mlrun-project-image-p"}},
	}
	if req := resolveProject(t, c, function.ProjectImage{Project: "p"}); req.Base != "own/base:1" {
		t.Errorf("base %q, want the default base: not the image itself, nor that of the kind", req.Base)
	}
	if req := resolveProject(t, c, function.ProjectImage{Project: "p", BaseImage: "python:3.12"}); req.Base != "python:3.12" {
		t.Errorf("base %q, want the one that was named", req.Base)
	}
}

func TestAProjectObjectIsTakenWithFlagsOnTop(t *testing.T) {
	t.Parallel()
	object := json.RawMessage(`{"kind": "project", "metadata": {"name": "my-proj"}, "spec": {
		"source": "git://github.com/mlrun/demo.git#main", "default_image": ".own-image:2", "default_requirements": ["numpy"],
		"build": {"base_image": "python:3.11", "commands": ["a"], "requirements": ["b"], "extra": "USER 1", "with_mlrun": false, "source_code_target_dir": "/old"}}}`)
	req := resolveProject(t, function.Config{Registry: "registry.example.com/team"}, function.ProjectImage{
		Object: object, Commands: []string{"c"}, Requirements: []string{"d,e"}, TargetDir: "/opt/code",
	})
	got := []any{req.Base, req.UserImage, req.Commands, req.Requirements, req.Extra, req.Source.URL, req.Source.Target}
	want := []any{
		"python:3.11", ".own-image:2",
		[]string{"a", "c"},
		[]string{"b", "numpy", "d,e"},
		"USER 1",
		"git://github.com/mlrun/demo.git#main", "/opt/code",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheProjectsSourceMayBeLoadedWhenFunctionsRun(t *testing.T) {
	t.Parallel()
	req := resolveProject(t, function.Config{Registry: "h.example/a"}, function.ProjectImage{Object: json.RawMessage(
		`{"metadata": {"name": "p"}, "spec": {"source": "git://h/r#b", "load_source_on_run": true}}`)})
	if req.Source != nil {
		t.Errorf("source %+v is put in", req.Source)
	}
}

func TestProjectsThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]function.ProjectImage{
		"project: has no name":                  {},
		"project: is not an object":             {Project: "p", Object: json.RawMessage(`[]`)},
		`metadata.name: is "a", not "b"`:        {Project: "b", Object: json.RawMessage(`{"metadata": {"name": "a"}}`)},
		"spec.build.commands: must be":          {Project: "p", Object: json.RawMessage(`{"spec": {"build": {"commands": "x"}}}`)},
		"spec.default_requirements[0]: is null": {Project: "p", Object: json.RawMessage(`{"spec": {"default_requirements": [null]}}`)},
	} {
		_, err := p.Function()
		if builder.KindOf(err) != builder.KindInvalidRequest || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestAnApplicationIsBuiltOnce(t *testing.T) {
	t.Parallel()
	resolve := func(fields string, force bool) builder.Request {
		req, err := function.Resolve(function.Config{Registry: "h.example/a"}, function.Input{
			Function: json.RawMessage(`{"kind": "application", "metadata": {"name": "a"}, "spec": {` + fields + `}}`), ForceBuild: force,
		})
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	const source = `"build": {"source": "git://h/r#b", "load_source_on_run": true, "base_image": "mlrun/mlrun:1.7.0"}`
	if req := resolve(source, false); !req.Decision.Build || req.Source == nil {
		t.Errorf("got %+v, want a build with the source", req.Decision)
	}
	if req := resolve(`"image": "own/app:1", `+source, false); req.Decision.Build || req.Decision.Image != "own/app:1" {
		t.Errorf("got %+v, want the image that is there", req.Decision)
	}
	if req := resolve(`"image": "own/app:1", `+source, true); !req.Decision.Build {
		t.Errorf("got %+v, want a build, since it is forced", req.Decision)
	}
}
