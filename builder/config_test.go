package builder_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func TestZeroConfigHasDefaults(t *testing.T) {
	t.Parallel()
	r := request()
	r.Platform = ""
	plan, err := builder.Draft(builder.Config{}, r)
	if err != nil {
		t.Fatal(err)
	}
	if want := "linux/" + runtime.GOARCH; plan.Platform != want {
		t.Errorf("Platform = %q, want %q", plan.Platform, want)
	}
	if plan.Limits.Timeout != 30*time.Minute {
		t.Errorf("Timeout = %s, want 30m", plan.Limits.Timeout)
	}
	if diff := cmp.Diff(builder.DefaultExecutor(), plan.Executor); diff != "" {
		t.Errorf("Executor (-want +got):\n%s", diff)
	}
	if len(plan.Secrets) != 0 {
		t.Errorf("Secrets = %v, want none", plan.Secrets)
	}
}

func TestConfigReportsEveryFaultAndNoPassword(t *testing.T) {
	t.Parallel()
	cfg := builder.Config{
		Platform: "Linux", Timeout: -time.Second, Limits: builder.Limits{Memory: -1, CPU: -1},
		Pip: builder.Pip{
			IndexURL:       "ftp://user:hunter2@host/simple",
			ExtraIndexURLs: []string{"https://user:hunter2@host/a b", "https://user:hunter2@host/\x00", "https:///simple"},
			TrustedHosts:   []string{"host/path", "host --index-url=x", "-r"},
		},
	}
	for name, construct := range map[string]func() error{
		"New": func() error {
			_, err := builder.New(cfg, builder.Lookup{Registry: fakeRegistry{}}, engineFunc(pushed))
			return err
		},
		"Draft": func() error { _, err := builder.Draft(cfg, request()); return err },
	} {
		err := construct()
		if err == nil {
			t.Fatalf("%s took a wrong configuration", name)
		}
		for _, part := range []string{
			"platform", "timeout", "memory", "cpu", "index URL is not", "extra index URL 1", "extra index URL 2",
			"extra index URL 3", `"host/path"`, `"host --index-url=x"`, `"-r"`,
		} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s error does not speak of %s:\n%v", name, part, err)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s error shows a password:\n%v", name, err)
		}
	}
}

func TestNewNeedsRegistryAndEngine(t *testing.T) {
	t.Parallel()
	if _, err := builder.New(builder.Config{}, builder.Lookup{}, engineFunc(pushed)); err == nil {
		t.Error("a missing registry was accepted")
	}
	if _, err := builder.New(builder.Config{}, builder.Lookup{Registry: fakeRegistry{}}, nil); err == nil {
		t.Error("a missing engine was accepted")
	}
}

func TestPipSettingsAreSecretsVersionedWithoutCredentials(t *testing.T) {
	t.Parallel()
	pip := builder.Pip{
		IndexURL:       "https://kiln:old-password@pypi.example/simple",
		ExtraIndexURLs: []string{"https://a.example/simple", "http://b.example:8080/simple"},
		TrustedHosts:   []string{"b.example:8080", "[::1]:80"},
	}
	plan := mustPlan(t, builder.Config{Pip: pip}, request())
	got := map[string]string{}
	public := map[string]bool{}
	for _, s := range plan.Secrets {
		got[s.ID], public[s.ID] = s.Value, s.Public
		if strings.Contains(s.Version, "old-password") || !strings.HasPrefix(s.Version, "sha256:") {
			t.Errorf("version of %s is %q, want a hash", s.ID, s.Version)
		}
	}
	want := map[string]string{
		"PIP_INDEX_URL":       "https://kiln:old-password@pypi.example/simple",
		"PIP_EXTRA_INDEX_URL": "https://a.example/simple http://b.example:8080/simple",
		"PIP_TRUSTED_HOST":    "b.example:8080 [::1]:80",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]bool{"PIP_INDEX_URL": false, "PIP_EXTRA_INDEX_URL": true, "PIP_TRUSTED_HOST": true}, public); diff != "" {
		t.Errorf("public (-want +got):\n%s", diff)
	}
	rotated := pip
	rotated.IndexURL = "https://kiln:new-password@pypi.example/simple"
	if again := mustPlan(t, builder.Config{Pip: rotated}, request()); again.BuildID != plan.BuildID {
		t.Error("rotated credentials made a different build")
	}
	moved := pip
	moved.IndexURL = "https://kiln:old-password@other.example/simple"
	if again := mustPlan(t, builder.Config{Pip: moved}, request()); again.BuildID == plan.BuildID {
		t.Error("another index made the same build")
	}
	if strings.Contains(plan.Dockerfile, "old-password") || strings.Contains(plan.Dockerfile, "pypi.example") {
		t.Errorf("the Dockerfile shows a setting:\n%s", plan.Dockerfile)
	}
}
