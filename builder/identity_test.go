package builder_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func TestIdentityIsStable(t *testing.T) {
	t.Parallel()
	// A change here makes every finished build unknown: bump kiln.identity with it.
	r := builder.Request{Base: "python:3.12", Target: "r.example/x:1", Commands: []string{"true"}, Platform: "linux/amd64"}
	got := mustPlan(t, builder.Config{}, r).BuildID
	if want := "ad5aaf68721ae8ed4fce862ebb943f0665381cefcc0b42df37e1b11ed8dffc2d"; got != want {
		t.Errorf("BuildID = %s, want %s", got, want)
	}
}

func TestEverythingThatGoesIntoTheImageChangesTheID(t *testing.T) {
	t.Parallel()
	executor := builder.DefaultExecutor()
	cfg := builder.Config{Pip: builder.Pip{IndexURL: "https://a.example/simple"}, Executor: executor}
	ids := map[string]string{mustPlan(t, cfg, request()).BuildID: "the original"}
	note := func(name string, plan builder.Plan) {
		if other, same := ids[plan.BuildID]; same {
			t.Errorf("%s has the same id as %s", name, other)
		}
		ids[plan.BuildID] = name
	}
	for name, change := range map[string]func(*builder.Request, *builder.Config){
		"platform":          func(r *builder.Request, _ *builder.Config) { r.Platform = "linux/arm64" },
		"command":           func(r *builder.Request, _ *builder.Config) { r.Commands[0] += " curl" },
		"command twice":     func(r *builder.Request, _ *builder.Config) { r.Commands = append(r.Commands, r.Commands[0]) },
		"requirement":       func(r *builder.Request, _ *builder.Config) { r.Requirements[0] = "pandas==2.2.1" },
		"no requirements":   func(r *builder.Request, _ *builder.Config) { r.Requirements = nil },
		"extra":             func(r *builder.Request, _ *builder.Config) { r.Extra = "USER 1000" },
		"argument's value":  func(r *builder.Request, _ *builder.Config) { r.BuildArgs[0].Value = "slow" },
		"argument's name":   func(r *builder.Request, _ *builder.Config) { r.BuildArgs[0].Name = "MODUS" },
		"secret argument":   func(r *builder.Request, _ *builder.Config) { r.BuildArgs[1].Value = "another" },
		"fewer arguments":   func(r *builder.Request, _ *builder.Config) { r.BuildArgs = r.BuildArgs[:1] },
		"base repository":   func(r *builder.Request, _ *builder.Config) { r.Base = "mirror.example/python:3.12-slim" },
		"scratch":           func(r *builder.Request, _ *builder.Config) { r.Base = builder.Scratch },
		"executor":          func(_ *builder.Request, c *builder.Config) { c.Executor.Name = "other" },
		"executor version":  func(_ *builder.Request, c *builder.Config) { c.Executor.Version = "v2" },
		"executor flags":    func(_ *builder.Request, c *builder.Config) { c.Executor.Flags = []string{"--snapshot-mode=full"} },
		"two flags":         func(_ *builder.Request, c *builder.Config) { c.Executor.Flags = []string{"--a", "--b"} },
		"one flag with gap": func(_ *builder.Request, c *builder.Config) { c.Executor.Flags = []string{"--a --b"} },
		"index":             func(_ *builder.Request, c *builder.Config) { c.Pip.IndexURL = "https://b.example/simple" },
		"no index":          func(_ *builder.Request, c *builder.Config) { c.Pip.IndexURL = "" },
		"trusted host":      func(_ *builder.Request, c *builder.Config) { c.Pip.TrustedHosts = []string{"a.example"} },
	} {
		r, c := request(), cfg
		change(&r, &c)
		note(name, mustPlan(t, c, r))
	}
	reg := fakeRegistry{resolve: func(string, string) (builder.Image, error) { return builder.Image{Digest: digest("e")}, nil }}
	plan, err := newBuilder(t, cfg, reg, pushed).Plan(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	note("base digest", plan)
}

func TestWhatDoesNotGoIntoTheImageKeepsTheID(t *testing.T) {
	t.Parallel()
	want := mustPlan(t, builder.Config{}, request()).BuildID
	for name, change := range map[string]func(*builder.Request, *builder.Config){
		"target":     func(r *builder.Request, _ *builder.Config) { r.Target = "other.example/a/b:c" },
		"user image": func(r *builder.Request, _ *builder.Config) { r.UserImage = ".b:c" },
		"function":   func(r *builder.Request, _ *builder.Config) { r.Project, r.Name, r.Tag = "p", "n", "t" },
		"request id": func(r *builder.Request, _ *builder.Config) { r.ID = "r-2" },
		"decision":   func(r *builder.Request, _ *builder.Config) { r.Decision = builder.Decision{Build: true, Reason: "x"} },
		"rebuild":    func(r *builder.Request, _ *builder.Config) { r.Rebuild = true },
		"timeout":    func(r *builder.Request, _ *builder.Config) { r.Timeout = time.Hour },
		"limits": func(_ *builder.Request, c *builder.Config) {
			c.Limits = builder.Limits{Memory: 1, CPU: 2, Disk: 3, PIDs: 4}
		},
		"base tag": func(r *builder.Request, _ *builder.Config) { r.Base = "python:3.12.7-slim-bookworm" },
		"secrecy":  func(r *builder.Request, _ *builder.Config) { r.BuildArgs[0].Secret = true },
	} {
		r, c := request(), builder.Config{}
		change(&r, &c)
		if got := mustPlan(t, c, r).BuildID; got != want {
			t.Errorf("another %s gives another id", name)
		}
	}
}

func TestIdentityShowsNoSecret(t *testing.T) {
	t.Parallel()
	plan := mustPlan(t, builder.Config{Pip: builder.Pip{IndexURL: "https://u:pass-word@a.example/simple"}}, request())
	fields := map[string]string{}
	for _, f := range plan.Identity {
		fields[f.Name] = f.Value
		if strings.Contains(f.Value, "s3cr3t") || strings.Contains(f.Value, "pass-word") {
			t.Errorf("field %s shows a secret: %s", f.Name, f.Value)
		}
	}
	if got := fields["build-arg:TOKEN"]; len(got) > 40 || !strings.HasSuffix(got, "… (secret)") {
		t.Errorf("a secret argument is shown as %q, want the beginning of a digest", got)
	}
	if got := fields["build-arg:MODE"]; len(got) != len(digest("a")) {
		t.Errorf("an argument is shown as %q, want a whole digest", got)
	}
	if plan.Identity[0] != (builder.Field{Name: "kiln.identity", Value: "v1"}) {
		t.Errorf("first field is %v, want the version", plan.Identity[0])
	}
}

// FuzzIdentity makes two requests of the same strings, differently divided, and
// holds that ids are equal exactly when what goes into the image is.
func FuzzIdentity(f *testing.F) {
	f.Add("A", "1", "B", "2", "--x", "--y")
	f.Add("A", "1B", "B", "2", "", "")
	f.Add("A", "", "A", "", "--a b", "--a")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2, flag1, flag2 string) {
		type content struct {
			Args  []builder.Arg
			Flags []string
		}
		arg := func(n, v string) builder.Arg { return builder.Arg{Name: "N" + n, Value: v} }
		var all []content
		var ids []string
		for _, c := range []content{
			{[]builder.Arg{arg(name1, value1), arg(name2, value2)}, []string{flag1, flag2}},
			{[]builder.Arg{arg(name2, value2), arg(name1, value1)}, []string{flag2, flag1}},
			{[]builder.Arg{arg(name1+name2, value1+value2)}, []string{flag1 + flag2}},
			{[]builder.Arg{arg(name1, value1+name2), arg("", value2)}, []string{flag1 + " " + flag2}},
			{[]builder.Arg{arg(name1, value1), arg(name2, value2)}, []string{flag1 + flag2, ""}},
			{[]builder.Arg{arg(name1, value2), arg(name2, value1)}, []string{flag1, flag2}},
		} {
			r := builder.Request{Base: builder.Scratch, Target: "r.example/x:1", BuildArgs: c.Args}
			plan, err := builder.Draft(builder.Config{Executor: builder.Executor{Name: "x", Flags: c.Flags}}, r)
			if err != nil {
				continue
			}
			all, ids = append(all, c), append(ids, plan.BuildID)
		}
		for i := range all {
			for j := range i {
				if same := cmp.Equal(all[i], all[j]); same != (ids[i] == ids[j]) {
					t.Errorf("same content: %t, same id: %t\n%+v\n%+v", same, ids[i] == ids[j], all[i], all[j])
				}
			}
		}
	})
}
