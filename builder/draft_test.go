package builder_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/builder"
)

func TestDraftIsOfflineAndUnpinned(t *testing.T) {
	t.Parallel()
	plan, err := builder.Draft(builder.Config{}, request())
	if err != nil {
		t.Fatal(err)
	}
	if plan.BuildID != "" || plan.Destination != "" {
		t.Errorf("BuildID %q and Destination %q of an unpinned plan, want none", plan.BuildID, plan.Destination)
	}
	if !strings.HasPrefix(plan.Dockerfile, "FROM python:3.12-slim\n") {
		t.Errorf("Dockerfile:\n%s", plan.Dockerfile)
	}
	if len(plan.Identity) == 0 {
		t.Error("the identity fields are not shown")
	}
}

func TestPlanPinsTheBaseAndKeepsItsName(t *testing.T) {
	t.Parallel()
	for ref, from := range map[string]string{
		"python:3.12-slim":                         "python",
		"localhost:5000/team/base:1":               "localhost:5000/team/base",
		"localhost:5000/team/base":                 "localhost:5000/team/base",
		"ghcr.io/team/base:1@" + digest("c"):       "ghcr.io/team/base",
		"registry.example:443/base@" + digest("c"): "registry.example:443/base",
	} {
		r := request()
		r.Base = ref
		plan := mustPlan(t, builder.Config{}, r)
		want := "# " + ref + "\nFROM " + from + "@" + digest("a") + "\n"
		if !strings.HasPrefix(plan.Dockerfile, want) {
			t.Errorf("Dockerfile of base %s does not begin with\n%s\nbut is\n%s", ref, want, plan.Dockerfile)
		}
		if want := (builder.Image{Ref: ref, Digest: digest("a"), Size: 42}); plan.Base != want {
			t.Errorf("Base = %+v, want %+v", plan.Base, want)
		}
		if want := "registry.example/ml/trainer:kiln-" + plan.BuildID; plan.Destination != want || len(plan.BuildID) != 64 {
			t.Errorf("Destination = %q, want %q", plan.Destination, want)
		}
	}
}

func TestPlanAsksForThePlatform(t *testing.T) {
	t.Parallel()
	for asked, want := range map[string]string{"": "linux/arm64", "linux/amd64": "linux/amd64"} {
		var got string
		reg := fakeRegistry{resolve: func(_, platform string) (builder.Image, error) {
			got = platform
			return builder.Image{Digest: digest("a")}, nil
		}}
		r := request()
		r.Platform = asked
		if _, err := newBuilder(t, builder.Config{Platform: "linux/arm64"}, reg, pushed).Plan(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("platform %q asked for %q", asked, got)
		}
	}
}

func TestScratchIsNotResolved(t *testing.T) {
	t.Parallel()
	reg := fakeRegistry{resolve: func(ref, _ string) (builder.Image, error) {
		t.Errorf("%s was resolved", ref)
		return builder.Image{}, nil
	}}
	r := request()
	r.Base = builder.Scratch
	plan, err := newBuilder(t, builder.Config{}, reg, pushed).Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if plan.BuildID == "" || !strings.HasPrefix(plan.Dockerfile, "FROM scratch\n") {
		t.Errorf("BuildID %q, Dockerfile:\n%s", plan.BuildID, plan.Dockerfile)
	}
	draft, err := builder.Draft(builder.Config{}, r)
	if err != nil || draft.BuildID != plan.BuildID {
		t.Errorf("draft has id %q and error %v, want the id %s", draft.BuildID, err, plan.BuildID)
	}
}

func TestPlanRefusesWhatNoRegistryIsAskedFor(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*builder.Request){
		"command with NUL":     func(r *builder.Request) { r.Commands = []string{"echo \x00"} },
		"base with newline":    func(r *builder.Request) { r.Base = "python\nRUN evil" },
		"no base":              func(r *builder.Request) { r.Base = "" },
		"no target":            func(r *builder.Request) { r.Target = "" },
		"platform":             func(r *builder.Request) { r.Platform = "linux/../amd64" },
		"negative timeout":     func(r *builder.Request) { r.Timeout = -1 },
		"argument named oddly": func(r *builder.Request) { r.BuildArgs = []builder.Arg{{Name: "A B"}} },
	} {
		reg := fakeRegistry{resolve: func(ref, _ string) (builder.Image, error) {
			t.Errorf("%s: the registry was asked for %q", name, ref)
			return builder.Image{}, nil
		}}
		r := request()
		change(&r)
		_, err := newBuilder(t, builder.Config{}, reg, pushed).Plan(t.Context(), r)
		if err == nil || builder.KindOf(err) != builder.KindInvalidRequest {
			t.Errorf("%s: error = %v, want invalid_request", name, err)
		}
	}
}

func TestPlanDoesNotTakeAnImageWithoutDigest(t *testing.T) {
	t.Parallel()
	for _, d := range []string{"", "latest", "sha256:short", digest("a") + "\nRUN evil"} {
		reg := fakeRegistry{resolve: func(string, string) (builder.Image, error) { return builder.Image{Digest: d}, nil }}
		_, err := newBuilder(t, builder.Config{}, reg, pushed).Plan(t.Context(), request())
		wantKind(t, err, builder.KindUnavailable)
	}
}

func TestUserArgumentReplacesConfiguredIndex(t *testing.T) {
	t.Parallel()
	r := request()
	r.BuildArgs = append(r.BuildArgs, builder.Arg{Name: "PIP_INDEX_URL", Value: "https://mine.example/simple"})
	plan := mustPlan(t, builder.Config{Pip: builder.Pip{IndexURL: "https://site.example/simple", TrustedHosts: []string{"x"}}}, r)
	if slices.ContainsFunc(plan.Secrets, func(s builder.Secret) bool { return s.ID == "PIP_INDEX_URL" }) || len(plan.Secrets) != 1 {
		t.Errorf("Secrets = %v, want PIP_TRUSTED_HOST only", plan.Secrets)
	}
}

func TestPlanSharesNothingWithTheRequest(t *testing.T) {
	t.Parallel()
	r := request()
	plan := mustPlan(t, builder.Config{Executor: builder.Executor{Name: "x", Flags: []string{"--a"}}}, r)
	r.BuildArgs[0].Value = "changed"
	if plan.BuildArgs[0].Value != "fast" {
		t.Error("a change of the request changed the plan")
	}
}

func TestRequestTimeoutTakesPrecedence(t *testing.T) {
	t.Parallel()
	r := request()
	r.Timeout = time.Hour
	plan := mustPlan(t, builder.Config{Timeout: time.Minute, Limits: builder.Limits{Memory: 1 << 30}}, r)
	if plan.Limits.Timeout != time.Hour || plan.Limits.Memory != 1<<30 {
		t.Errorf("Limits = %+v", plan.Limits)
	}
}

func TestSecretValuesOfAPlan(t *testing.T) {
	t.Parallel()
	plan := builder.Plan{
		BuildArgs: []builder.Arg{
			{Name: "MODE", Value: "fast"},
			{Name: "TOKEN", Value: "tok-1", Secret: true},
			{Name: "EMPTY", Secret: true},
			{Name: "REMOTE", Value: "https://bot:p%40ss@git.example/x"},
		},
		Secrets: []builder.Secret{
			{ID: "A", Value: "raw-secret", Version: "7"},
			{ID: "B", Value: "public", Version: "x", Public: true},
			{ID: "C", Value: "https://ghp_0123456789abcdef:x-oauth-basic@git.example/x https://open.example", Version: "x"},
		},
	}
	got := plan.SecretValues()
	for _, want := range []string{
		"tok-1", "p%40ss", "p@ss", "bot:p%40ss", "raw-secret", "ghp_0123456789abcdef", "x-oauth-basic",
		"https://ghp_0123456789abcdef:x-oauth-basic@git.example/x",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	for _, open := range []string{"fast", "public", "bot", "", "https://open.example"} {
		if slices.Contains(got, open) {
			t.Errorf("%q is no secret but is in %q", open, got)
		}
	}
	logs := builder.NewRedactor(got...).Text("cloning https://bot:p%40ss@git.example/x with tok-1")
	if logs != "cloning *** with ***" {
		t.Errorf("redacted = %q", logs)
	}
}
