package function_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/dockerfile"
	"kiln/builder/function"
)

// recorded is one case of testdata/cases.json.
type recorded struct {
	ID, About, Differs string
	Function           json.RawMessage
	Request            struct {
		WithMLRun             *bool             `json:"with_mlrun"`
		SkipDeployed          bool              `json:"skip_deployed"`
		ForceBuild            bool              `json:"force_build"`
		MLRunVersionSpecifier string            `json:"mlrun_version_specifier"`
		BuilderEnv            map[string]string `json:"builder_env"`
	}
	Config struct {
		Registry              *string
		MLRunVersionSpecifier string `json:"mlrun_version_specifier"`
		PipVersion            string `json:"pip_version"`
	}
	Want want
}

// want is what a case expects. UserImage is compared only where it is set.
type want struct {
	Build        bool
	Image        string
	Base         string
	Target       string
	UserImage    string `json:"user_image"`
	Commands     []string
	Requirements []string
	Args         []string
	Extra        string
	Errors       []string
}

func TestResolveFollowsRecordedCases(t *testing.T) {
	t.Parallel()
	for _, tc := range readCases(t) {
		t.Run(tc.ID, func(t *testing.T) {
			t.Parallel()
			config, in := tc.input()
			before := string(in.Function)
			req, err := function.Resolve(config, in)
			got := want{
				Build: req.Decision.Build, Image: req.Decision.Image, Base: req.Base, Target: req.Target,
				Commands: req.Commands, Requirements: req.Requirements, Extra: req.Extra, Errors: faults(t, err),
			}
			if tc.Want.UserImage != "" {
				got.UserImage = req.UserImage
			}
			for _, arg := range req.BuildArgs {
				text := arg.Name + "=" + arg.Value
				if arg.Secret {
					text += " (secret)"
				}
				got.Args = append(got.Args, text)
			}
			if diff := cmp.Diff(tc.Want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.About, diff)
			}
			if string(in.Function) != before {
				t.Error("the function object was changed")
			}
			if err == nil {
				checkRenders(t, req)
			}
		})
	}
}

func (tc recorded) input() (function.Config, function.Input) {
	config := function.Config{
		Registry:              "registry.example.com/myrepo",
		MLRunVersionSpecifier: tc.Config.MLRunVersionSpecifier,
		PipVersion:            tc.Config.PipVersion,
	}
	if tc.Config.Registry != nil {
		config.Registry = *tc.Config.Registry
	}
	return config, function.Input{
		Function:              tc.Function,
		WithMLRun:             tc.Request.WithMLRun,
		SkipDeployed:          tc.Request.SkipDeployed,
		ForceBuild:            tc.Request.ForceBuild,
		MLRunVersionSpecifier: tc.Request.MLRunVersionSpecifier,
		BuilderEnv:            tc.Request.BuilderEnv,
	}
}

func readCases(tb testing.TB) []recorded {
	tb.Helper()
	data, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		tb.Fatal(err)
	}
	var file struct {
		About string
		Cases []recorded
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		tb.Fatal(err)
	}
	return file.Cases
}

// faults returns the lines of an error, which must be of the promised type.
func faults(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	fault, ok := errors.AsType[*builder.Error](err)
	if !ok || fault.Kind != builder.KindInvalidRequest {
		t.Fatalf("got %T of kind %s, want *builder.Error of kind %s", err, builder.KindOf(err), builder.KindInvalidRequest)
	}
	return strings.Split(fault.Err.Error(), "\n")
}

// checkRenders holds Resolve to its promise about what it returns.
func checkRenders(t *testing.T, req builder.Request) {
	t.Helper()
	if !strings.HasSuffix(req.Decision.Reason, ".") || strings.Contains(req.Decision.Reason, "  ") {
		t.Errorf("reason %q is not a sentence", req.Decision.Reason)
	}
	if !req.Decision.Build {
		if req.Decision.Image == "" {
			t.Error("got neither a build nor an image")
		}
		return
	}
	names := make([]string, len(req.BuildArgs))
	for i, arg := range req.BuildArgs {
		names[i] = arg.Name
	}
	spec := dockerfile.Spec{Base: req.Base, Args: names, Commands: req.Commands, Requirements: req.Requirements, Extra: req.Extra}
	if s := req.Source; s != nil {
		spec.Source = &dockerfile.Source{Dir: builder.SourceDir, Target: s.Target, Owner: s.Owner, First: s.First}
	}
	_, _, err := dockerfile.Render(spec)
	if err != nil {
		t.Errorf("Render: %v", err)
	}
}
