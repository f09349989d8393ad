package function_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/function"
)

func TestResolveReturnsTheWholeRequest(t *testing.T) {
	t.Parallel()
	in := function.Input{
		RequestID: "r-1",
		Function: json.RawMessage(`{"kind": "job", "metadata": {"name": "Train_Model", "project": "churn", "tag": "v2"}, "future": 1,
			"spec": {"image": "", "future": [], "build": {"base_image": "python:3.12-slim", "commands": ["apt-get update"],
			"requirements": ["pandas"], "extra": "USER 1000", "builder_env": {"B": "2", "MODE": "fast"}, "with_mlrun": false, "future": {}}}}`),
		BuilderEnv: map[string]string{"MODE": "full", "API_KEY": "s3cret"},
		Timeout:    "90m",
		Platform:   "linux/arm64/v8",
		NoCache:    true,
	}
	got, err := function.Resolve(function.Config{Registry: "registry.example.com/team"}, in)
	if err != nil {
		t.Fatal(err)
	}
	target := "registry.example.com/team/func-churn-train-model:v2"
	want := builder.Request{
		ID: "r-1", Project: "churn", Name: "train-model", Tag: "v2",
		Decision: builder.Decision{
			Build: true,
			Reason: "A build is needed: the function adds 1 command, 1 requirement and extra Dockerfile text" +
				" to spec.build.base_image python:3.12-slim.",
		},
		Base: "python:3.12-slim", Target: target, UserImage: target,
		Commands: []string{"apt-get update"}, Requirements: []string{"pandas"},
		BuildArgs: []builder.Arg{{Name: "API_KEY", Value: "s3cret", Secret: true}, {Name: "B", Value: "2"}, {Name: "MODE", Value: "full"}},
		Extra:     "USER 1000", Timeout: 90 * time.Minute, Platform: "linux/arm64/v8", Rebuild: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestResolveReportsAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	_, err := function.Resolve(function.Config{Registry: "myuser", MaxTimeout: time.Hour}, function.Input{
		Function: json.RawMessage(`{"kind": 7, "metadata": {"name": "a/b", "project": "P", "tag": "-x"}, "spec": {
			"image": ["x"], "node_name": "n", "service_account": "sa", "priority_class_name": "p", "tolerations": [{}], "affinity": {"a": {}},
			"build": {"image": 1, "commands": ["ok", "a\u0000", null], "requirements": ["ok", "a \\\nb", "c\u0000", 5],
			"extra": {}, "builder_env": {"A": null, "B-C": "x", "N": "\u0000"}, "with_mlrun": "yes", "functionSourceCode": "%%%",
			"source": "git://x", "secret": "s", "registry": "r", "load_source_on_run": true}}}`),
		BuilderEnv:            map[string]string{"100%d": "x", "M": "\x00"},
		MLRunVersionSpecifier: "mlrun\n-r /etc/x",
		Timeout:               "2h",
		Platform:              "linux",
	})
	const notName = " is not a name: letters, digits and underscores, not beginning with a digit"
	const notPart = " cannot be part of an image name: lower case letters and digits, with single . _ or - between"
	want := []string{
		`configuration of the registry: "myuser" is neither a host (with a dot, a port, or localhost) nor user/repository; for Docker Hub it is docker.io/user`,
		`kind: must be text`,
		`spec.image: must be text`,
		`spec.build.image: must be text`,
		`spec.build.extra: must be text`,
		`spec.build.builder_env["A"]: is null`,
		`spec.build.with_mlrun: must be true or false`,
		`metadata.name: "a/b"` + notPart,
		`metadata.project: "P"` + notPart,
		`metadata.tag: "-x" is not an image tag: up to 128 letters, digits, _ . or -, not beginning with . or -`,
		`spec.build.commands[2]: is null`,
		`spec.build.commands[1]: holds a NUL byte`,
		`spec.build.requirements: must be a list of texts`,
		`options.timeout: 2h0m0s is more than the limit of 1h0m0s`,
		`options.platform: "linux" is not of the form os/arch or os/arch/variant, such as linux/arm64`,
		`builder_env["100%d"]: "100%d"` + notName,
		`spec.build.builder_env["B-C"]: "B-C"` + notName,
		`builder_env.M: holds a NUL byte`,
		`spec.build.builder_env.N: holds a NUL byte`,
		`mlrun_version_specifier: holds a line break`,
		`kind: "" is not supported; an image can be built for job, mpijob, dask, spark, remote-spark, databricks and application`,
	}
	if diff := cmp.Diff(want, faults(t, err)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestResolveRefusesWhatCannotBeAnImage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ function, want string }{
		{`{}`, `metadata.name: is not set`},
		{`null`, `function: is not an object with kind, metadata and spec`},
		{``, `function: is not an object with kind, metadata and spec`},
		{`[1]`, `function: is not an object with kind, metadata and spec`},
		{`{`, `function: is not an object with kind, metadata and spec`},
		{`{"kind": "job", "metadata": {"name": "a"}, "spec": 1}`, `spec: is not an object`},
		{`{"kind": "job", "metadata": {"name": "a"}, "spec": {"build": []}}`, `spec.build: is not an object`},
		{`{"kind": "job", "metadata": 1}`, `metadata: is not an object`},
		{job(`"base_image": "python AS x", "commands": ["a"]`), `spec.build.base_image: "python AS x" is not an image reference`},
		{job(`"base_image": "--platform=linux/arm64 a", "commands": ["a"]`), `spec.build.base_image: "--platform=linux/arm64 a" is not an image reference`},
		{job(`"base_image": "a\nRUN id", "commands": ["a"]`), `spec.build.base_image: "a\nRUN id" is not an image reference`},
		{job(`"base_image": "https://quay.io/a/b", "commands": ["a"]`), `spec.build.base_image: "https://quay.io/a/b" is not an image reference`},
		{job(`"image": "Upper/Case:1", "commands": ["a"]`), `spec.build.image: "Upper/Case:1" is not an image reference`},
		{job(`"image": "..", "commands": ["a"]`), `spec.build.image: "h.example/team/." is not an image reference`},
		{job(`"commands": ["#!/usr/bin/env -S a b\nx"]`), `spec.build.commands[0]: the first line "#!/usr/bin/env -S a b" must be #! with an absolute path and at most one plain argument`},
		{job(`"requirements": ["a", "b\nc \\ # x"]`), `spec.build.requirements[1]: ends with a backslash, which would join it with the next line`},
		{
			`{"kind": "handler", "metadata": {"name": "a"}, "spec": {"build": {"requirements": ["a"]}}}`,
			`kind: functions of kind handler run where they are called, and no image is built for them; set spec.image to have one reported`,
		},
		{job(`"extra": "USER a\u0000"`), `spec.build.extra: holds a NUL byte`},
	} {
		_, err := function.Resolve(function.Config{Registry: "h.example/team"}, function.Input{Function: json.RawMessage(tc.function)})
		if got := faults(t, err); len(got) == 0 || got[0] != tc.want {
			t.Errorf("Resolve(%s)\n got %q\nwant %q first", tc.function, got, tc.want)
		}
	}
}

// job returns a function object with these keys of spec.build.
func job(build string) string {
	return `{"kind": "job", "metadata": {"name": "a"}, "spec": {"image": "mlrun/mlrun", "build": {` + build + `}}}`
}

func TestReasonsTellPeopleWhy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		function string
		in       function.Input
		want     string
	}{
		{job(``), function.Input{}, "No build is needed: spec.image mlrun/mlrun is used as it is, since the function adds no commands, requirements, source or extra."},
		{`{"kind": "application", "metadata": {"name": "a"}}`, function.Input{}, "No build is needed: the default image of kind application python:3.9 is used as it is, since the function adds no commands, requirements, source or extra."},
		{job(`"commands": ["a"]`), function.Input{SkipDeployed: true}, "No build is needed: skip_deployed is set, and the function has an image, spec.image mlrun/mlrun."},
		{job(``), function.Input{ForceBuild: true}, "A build is needed: force_build is set; the function adds nothing to spec.image mlrun/mlrun. Note: spec.image mlrun/mlrun has no tag and no version of MLRun is known, so that it stands for latest; set mlrun.server_version or options.client_version."},
		{job(`"commands": ["a", "b"], "requirements": ["c", "d"]`), function.Input{}, "A build is needed: the function adds 2 commands and 2 requirements to spec.image mlrun/mlrun. Note: spec.image mlrun/mlrun has no tag and no version of MLRun is known, so that it stands for latest; set mlrun.server_version or options.client_version."},
		{job(`"base_image": "python:3.12"`), function.Input{}, "A build is needed: the function adds mlrun (the default for a base image without it, with_mlrun: false leaves it out) to spec.build.base_image python:3.12."},
		{job(`"base_image": "python:3.12"`), function.Input{WithMLRun: new(true)}, "A build is needed: the function adds mlrun (the request sets with_mlrun) to spec.build.base_image python:3.12."},
		{job(`"base_image": "python:3.12", "with_mlrun": true`), function.Input{}, "A build is needed: the function adds mlrun (spec.build.with_mlrun is set) to spec.build.base_image python:3.12."},
		{`{"kind": "spark", "metadata": {"name": "a"}, "spec": {"image": "b"}}`, function.Input{}, "A build is needed: the function adds mlrun (the default for kind spark, with_mlrun: false leaves it out) to spec.image b."},
		{`{"kind": "serving", "metadata": {"name": "a"}}`, function.Input{}, "No build is needed: Nuclio builds the images of kind serving when they are deployed, and this function adds nothing to the default image of kind serving mlrun/mlrun. Note: the default image of kind serving mlrun/mlrun has no tag and no version of MLRun is known, so that it stands for latest; set mlrun.server_version or options.client_version."},
		{`{"kind": "local", "metadata": {"name": "a"}, "spec": {"image": "b:1"}}`, function.Input{}, "No build is needed: functions of kind local run where they are called; spec.image b:1 is left as it is."},
		{`{"kind": "handler", "metadata": {"name": "a"}, "spec": {"image": "b", "build": {"requirements": ["a"], "source": "x.zip"}}}`, function.Input{}, "No build is needed: functions of kind handler run where they are called; spec.image b is left as it is. Not used: spec.build.requirements and spec.build.source."},
	} {
		tc.in.Function = json.RawMessage(tc.function)
		req, err := function.Resolve(function.Config{Registry: "localhost:5000"}, tc.in)
		if err != nil {
			t.Errorf("Resolve(%s): %v", tc.function, err)
		}
		if req.Decision.Reason != tc.want {
			t.Errorf("Resolve(%s)\n got %s\nwant %s", tc.function, req.Decision.Reason, tc.want)
		}
	}
}

func TestWithMLRunCanBeTheOperatorsDecision(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		with, build string
		request     *bool
		want        bool
	}{
		{"", `"base_image": "python:3.12"`, nil, true},
		{"auto", `"commands": ["x"]`, nil, false},
		{"never", `"base_image": "python:3.12"`, nil, false},
		{"never", `"base_image": "python:3.12"`, new(true), true},
		{"never", `"base_image": "python:3.12", "with_mlrun": true`, nil, true},
		{"always", `"commands": ["x"], "base_image": ""`, nil, false},
		{"always", `"base_image": "mlrun/ml-models:1.6.0", "commands": ["x"]`, nil, true},
		{"always", `"base_image": "mlrun/ml-models:1.6.0", "commands": ["x"]`, new(false), false},
		{"always", `"base_image": "scratch", "extra": "LABEL a=b"`, nil, false},
	} {
		req, err := resolveJob(function.Config{WithMLRun: tc.with}, function.Input{WithMLRun: tc.request}, tc.build)
		if err != nil || (len(req.Requirements) > 0) != tc.want {
			t.Errorf("%s, %s: got %q, %v; want mlrun %t", tc.with, tc.build, req.Requirements, err, tc.want)
		}
	}
}

func TestVersionsOfTheClientAreChecked(t *testing.T) {
	t.Parallel()
	_, err := resolveJob(function.Config{}, function.Input{ClientVersion: "1.7\nRUN id", ClientPythonVersion: "$(id)"}, `"commands": ["x"]`)
	want := []string{`options.client_version: "1.7\nRUN id" is not a version such as 1.7.0`, `options.client_python_version: "$(id)" is not a version such as 1.7.0`}
	if err == nil || cmp.Diff(want, faults(t, err)[:2]) != "" {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestSameFunctionGivesTheSameRequestEveryTime(t *testing.T) {
	t.Parallel()
	build := `"base_image": "python:3.9", "commands": ["echo 1"], "requirements": ["pandas"]`
	first, err := resolveJob(function.Config{MLRunVersion: "1.7.0"}, function.Input{}, build)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := json.Marshal(map[string]any{"base_image": "python:3.9", "commands": first.Commands, "requirements": first.Requirements})
	if err != nil {
		t.Fatal(err)
	}
	again, err := resolveJob(function.Config{MLRunVersion: "1.8.0"}, function.Input{}, strings.Trim(string(stored), "{}"))
	if err != nil {
		t.Fatal(err)
	}
	again.Decision = first.Decision
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("what MLRun stored changes the image (-want +got):\n%s", diff)
	}
}

func TestScratchIsABase(t *testing.T) {
	t.Parallel()
	req, err := function.Resolve(function.Config{Registry: "localhost:5000"}, function.Input{
		Function: json.RawMessage(job(`"base_image": "scratch", "extra": "LABEL a=b"`)),
	})
	if err != nil || req.Base != "scratch" || len(req.Commands)+len(req.Requirements) != 0 {
		t.Errorf("got base %q, commands %q, requirements %q, error %v; want scratch and nothing else",
			req.Base, req.Commands, req.Requirements, err)
	}
}

func TestRequestWithoutBuildNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	req, err := function.Resolve(function.Config{}, function.Input{Function: json.RawMessage(job(`"image": ".short"`))})
	if err != nil || req.Decision.Build || req.Target != "" || req.Decision.Image != "mlrun/mlrun" {
		t.Errorf("got %+v, %v; want no build and no target", req, err)
	}
}

func TestImageByKindIsPutOnTopOfDefaults(t *testing.T) {
	t.Parallel()
	config := function.Config{ImageByKind: map[string]string{"databricks": "quay.io/a/db:1", "job": ""}}
	for kind, want := range map[string]string{"databricks": "quay.io/a/db:1", "mpijob": "mlrun/mlrun", "job": ""} {
		req, err := function.Resolve(config, function.Input{
			Function: json.RawMessage(`{"kind": "` + kind + `", "metadata": {"name": "a"}}`),
		})
		if req.Decision.Image != want || (err == nil) != (want != "") {
			t.Errorf("kind %s: got image %q, error %v; want %q", kind, req.Decision.Image, err, want)
		}
	}
	if len(config.ImageByKind) != 2 {
		t.Error("the configuration was changed")
	}
}

func TestTimeoutIsAPositiveDurationWithinTheLimit(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"": 0, "30m": 30 * time.Minute, "4h": 4 * time.Hour, "1h1s": time.Hour + time.Second,
		"4h1s": -1, "0": -1, "0s": -1, "-5m": -1, "30": -1, "soon": -1, "1000000h": -1, "9999999999999h": -1,
	} {
		req, err := function.Resolve(function.Config{}, function.Input{Function: json.RawMessage(job(``)), Timeout: text})
		if (err != nil) != (want < 0) || err == nil && req.Timeout != want {
			t.Errorf("timeout %q: got %s, %v; want %s", text, req.Timeout, err, want)
		}
	}
}

func TestPlatformIsOSAndArchitecture(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"": true, "linux/amd64": true, "linux/arm/v7": true, "linux/x86_64": true,
		"linux": false, "linux/": false, "linux/arm/v7/x": false, "linux/ amd64": false, "Linux/amd64": false, "linux/amd64\n": false, "--a/b": false,
	} {
		_, err := function.Resolve(function.Config{}, function.Input{Function: json.RawMessage(job(``)), Platform: text})
		if (err == nil) != want {
			t.Errorf("platform %q: got %v, want accepted %t", text, err, want)
		}
	}
}

func TestArgumentsThatLookSecretAreMarked(t *testing.T) {
	t.Parallel()
	env := map[string]string{}
	secret := []string{
		"INDEX_URL", "GIT_TOKEN", "token", "AWS_SECRET_ACCESS_KEY", "apikey", "SSH_KEYS", "DB_PASSWORD", "DB_PASS", "PGPASSWD", "PWD_DB_PWD", "HTTP_AUTH",
		"GITHUB_PAT", "Credentials_File", "KEY_ID", "PASSPHRASE",
	}
	plain := []string{"KEYBOARD", "AUTHOR", "PATH", "COMPASS_DIRECTION", "MODE", "HTTP_PROXY", "PYTHONPATH", "PATCH"}
	for _, name := range slices.Concat(secret, plain) {
		env[name] = "http://host:80/a@b"
	}
	env["INDEX_URL"] = "https://user:word@host/simple"
	req, err := function.Resolve(function.Config{Registry: "localhost:5000"}, function.Input{
		Function: json.RawMessage(job(`"commands": ["a"]`)), BuilderEnv: env,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, arg := range req.BuildArgs {
		got[arg.Name] = arg.Secret
	}
	for _, name := range secret {
		if !got[name] {
			t.Errorf("%s is not marked", name)
		}
	}
	for _, name := range plain {
		if got[name] {
			t.Errorf("%s is marked", name)
		}
	}
}

func TestValidateFindsFaultsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	for _, registry := range []string{
		"", "docker.io/user", "user/repository", "localhost", "localhost:5000", "quay.io/", "h.example:80/a/b", "[::1]:5000/a", "10.0.0.1:5000",
	} {
		if err := (function.Config{Registry: registry}).Validate(); err != nil {
			t.Errorf("registry %q: %v", registry, err)
		}
	}
	for _, registry := range []string{
		"https://index.docker.io/v1/", "http://localhost:5000", "oci://a.b/c", "index.docker.io/v1/", "user", "user@h.example/a", "h.example/A", "h.example/a b",
		"h.example//a", "h.example:port/a", " h.example", "h.example/a:1", "h.example/a@sha256:x", "/", "-/a", "$H.x/a",
	} {
		if (function.Config{Registry: registry}).Validate() == nil {
			t.Errorf("registry %q is accepted", registry)
		}
	}
	err := function.Config{
		TargetNameTemplate: "{Name}-{x}", DefaultBaseImage: ".base", ImageByKind: map[string]string{"job": "A b", "dask": "-"},
		MLRunVersionSpecifier: "a\nb", PipVersion: "; rm -rf /", MaxTimeout: -1, WithMLRun: "yes", MLRunVersion: "1 7", MLRunPackage: "-r",
		ImagesTag: ".x", ImagesRegistry: "https://h", VendorImagesRegistry: "h.example/B", ImagesToEnrich: []string{"("},
		RegistrySecret: "a/b", SourceOwner: "root", ServiceAccount: "A",
	}.Validate()
	if err == nil {
		t.Fatal("got no error")
	}
	var fields []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		_, line, _ = strings.Cut(line, "configuration of ")
		field, _, _ := strings.Cut(line, ":")
		fields = append(fields, field)
	}
	want := []string{
		"the target name template", "the default base image", "the image for kind dask", "the image for kind job",
		"the images tag", "the images registry", "the vendor images registry", "the images to enrich",
		"with_mlrun", "the version of MLRun", "the package of MLRun", "the mlrun version specifier", "the pip version",
		"the registry secret", "the source owner", "the service account", "the longest timeout",
	}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("(-want +got):\n%s\n%v", diff, err)
	}
	for _, template := range []string{"fixed", "{name} {project}", "{project}", "a/../{name}", "{name}:{tag}", "{name}:x", "{NAME}"} {
		if (function.Config{TargetNameTemplate: template}).Validate() == nil {
			t.Errorf("template %q is accepted", template)
		}
	}
	for _, version := range []string{"~=23.0", "==24.0", ">=24,<26", ">=24, !=24.1", "===1.0"} {
		if err := (function.Config{PipVersion: version}).Validate(); err != nil {
			t.Errorf("pip version %q: %v", version, err)
		}
	}
}
