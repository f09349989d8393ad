package nuclio_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder/nuclio"
)

// spec is a Spec of kind nuclio whose object has these keys of spec.
func spec(fields string) nuclio.Spec {
	s := nuclio.Spec{
		Object: json.RawMessage(`{"kind": "nuclio", "metadata": {"labels": {"team": "a"}}, "spec": {` + fields + `}}`),
		Kind:   "nuclio", Project: "demo", Name: "trainer", Tag: "latest",
	}
	var object struct {
		Spec struct{ Build struct{ Source string } }
	}
	if json.Unmarshal(s.Object, &object) == nil {
		s.Source = object.Spec.Build.Source
	}
	return s
}

func configure(t *testing.T, s nuclio.Spec, secrets map[string]string) nuclio.Function {
	t.Helper()
	before := string(s.Object)
	f, err := s.Function(secrets)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Object) != before {
		t.Error("the function object was changed")
	}
	return f
}

// at returns what is at a path of the configuration.
func at(f nuclio.Function, path string) any {
	var value any = f.Config
	for key := range strings.SplitSeq(path, ".") {
		object, _ := value.(map[string]any)
		value = object[key]
	}
	return value
}

func check(t *testing.T, f nuclio.Function, path string, want any) {
	t.Helper()
	if diff := cmp.Diff(want, at(f, path)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestTheWholeConfiguration(t *testing.T) {
	t.Parallel()
	s := spec(`"image": "x", "function_handler": "main:go", "no_cache": true, "base_image_pull": true, "min_replicas": 1, "max_replicas": 4,
		"service_account": "sa", "node_selector": {"zone": "a"}, "readiness_timeout": 60, "priority_class_name": "",
		"disable_default_http_trigger": false,
		"volumes": [{"name": "v", "emptyDir": {}}], "volume_mounts": [{"name": "v", "mountPath": "/v"}],
		"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "C", "value": null}],
		"config": {"spec.triggers.http": {"kind": "http", "maxWorkers": 2}, "metadata.labels.\\some.domain/label\\": "l"},
		"build": {"functionSourceCode": "cHJpbnQoKQ==", "code_origin": "https://u:hunter2@host/repo.git#1", "extra_args": "--build-arg A=b  B=c\n--skip-tls-verify"}`)
	s.BaseImage, s.Tag, s.Config.Namespace = "registry.example.com/mlrun/mlrun:1.7.0", "v2", "nuclio"
	s.Commands, s.Requirements = []string{" apt-get update ", "", "# why"}, []string{"pandas>=2", "it's"}
	want := map[string]any{
		"apiVersion": "nuclio.io/v1", "kind": "Function",
		"metadata": map[string]any{
			"name": "demo-trainer-v2", "namespace": "nuclio",
			"labels": map[string]any{
				"team": "a", "some.domain/label": "l", "mlrun/class": "nuclio", "nuclio.io/project-name": "demo", "nuclio.io/tag": "v2",
			},
			"annotations": map[string]any{"nuclio.io/generated_by": "function generated from https://host/repo.git#1"},
		},
		"spec": map[string]any{
			"runtime": "python:3.9", "handler": "main:go",
			"minReplicas": json.Number("1"), "maxReplicas": json.Number("4"), "serviceAccount": "sa",
			"nodeSelector": map[string]any{"zone": "a"}, "readinessTimeoutSeconds": json.Number("60"), "disableDefaultHTTPTrigger": false,
			"triggers": map[string]any{"http": map[string]any{"kind": "http", "maxWorkers": json.Number("2")}},
			"volumes": []any{map[string]any{
				"volume":      map[string]any{"name": "v", "emptyDir": map[string]any{}},
				"volumeMount": map[string]any{"name": "v", "mountPath": "/v"},
			}},
			"env": []any{
				map[string]any{"name": "A", "value": "1"},
				map[string]any{"name": "B", "valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": "s", "key": "k"}}},
				map[string]any{"name": "MLRUN_DEFAULT_PROJECT", "value": "demo"},
			},
			"build": map[string]any{
				"baseImage": "registry.example.com/mlrun/mlrun:1.7.0", "noCache": true, "noBaseImagesPull": false,
				"commands":           []any{"apt-get update", `python -m pip install 'pandas>=2' 'it'"'"'s'`},
				"flags":              []any{"--build-arg A=b B=c", "--skip-tls-verify"},
				"functionSourceCode": "cHJpbnQoKQ==",
			},
		},
	}
	f := configure(t, s, nil)
	if diff := cmp.Diff(want, f.Config); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if f.Name != "demo-trainer-v2" || f.Project != "demo" || f.Namespace != "nuclio" {
		t.Errorf("got %q of %q in %q", f.Name, f.Project, f.Namespace)
	}
}

func TestRequirementsAreOneCommandOfQuotedWords(t *testing.T) {
	t.Parallel()
	for want, lines := range map[string][]string{
		"python -m pip install pandas numpy":                              {"pandas", "numpy"},
		"python -m pip install 'a[b]>=1; python_version<\"3.8\"'":         {`a[b]>=1; python_version<"3.8"`},
		"python -m pip install 'a b; rm -rf /' '$(id)' '`id`'":            {"a b; rm -rf /", "$(id)", "`id`"},
		"python -m pip install -r requirements.txt numpy":                 {"-r requirements.txt", "numpy"},
		"python -m pip install -r 'my file.txt' -r x.txt":                 {"-r my file.txt", "-rx.txt"},
		"python -m pip install --requirement 'a b'":                       {"--requirement a b"},
		"python -m pip install --requirement=x.txt":                       {"--requirement=x.txt"},
		"python -m pip install --extra-index-url https://host/simple foo": {"--extra-index-url https://host/simple", "foo"},
		"python -m pip install --pre '-$(id)'":                            {"--pre", "-$(id)"},
		"python -m pip install git+https://host/r.git@main#egg=x":         nil,
	} {
		if lines == nil {
			lines = []string{"git+https://host/r.git@main#egg=x"}
			want = "python -m pip install 'git+https://host/r.git@main#egg=x'"
		}
		if got := nuclio.PipInstall(lines); got != want {
			t.Errorf("PipInstall(%q)\n got %s\nwant %s", lines, got, want)
		}
	}
}

func TestCommandsOfTheConfigurationReplaceThoseOfTheBuild(t *testing.T) {
	t.Parallel()
	s := spec(`"config": {"spec.build.commands": ["from-config"]}`)
	s.Commands, s.Requirements = []string{"from-build"}, []string{"p"}
	check(t, configure(t, s, nil), "spec.build.commands", []any{"from-config", "python -m pip install p"})

	s = spec(`"base_spec": {"spec": {"build": {"commands": ["from-base"]}}}`)
	s.Commands = []string{"from-build"}
	check(t, configure(t, s, nil), "spec.build.commands", []any{"from-base", "from-build"})
}

func TestABaseSpecIsWhatTheRestIsPutOn(t *testing.T) {
	t.Parallel()
	f := configure(t, spec(`"function_handler": "not:used", "env": [{"name": "A", "value": "new"}], "base_spec": {"apiVersion": "nuclio.io/v1beta1",
		"metadata": {"annotations": {"a": "b"}}, "spec": {"handler": "own:handler", "runtime": "python:3.6", "env": [{"name": "A", "value": "old"}], "build": {"functionSourceCode": "eA=="}}}`), nil)
	check(t, f, "apiVersion", "nuclio.io/v1beta1")
	check(t, f, "metadata.annotations.a", "b")
	check(t, f, "spec.handler", "own:handler")
	check(t, f, "spec.runtime", "python:3.9")
	check(t, f, "spec.build.functionSourceCode", "eA==")
	check(t, f, "spec.env", []any{map[string]any{"name": "A", "value": "new"}, map[string]any{"name": "MLRUN_DEFAULT_PROJECT", "value": "demo"}})
}

func TestSourcesBecomeCodeEntries(t *testing.T) {
	t.Parallel()
	type entry = map[string]any
	none := entry{}
	for name, tc := range map[string]struct {
		source       string
		env, secrets map[string]string
		kind, path   string
		attributes   entry
		hidden       []string
	}{
		"git ref with token": {
			"git://github.com/org/repo#refs/heads/b",
			map[string]string{"GIT_TOKEN": "tok"},
			nil,
			"git", "https://github.com/org/repo",
			entry{"reference": "refs/heads/b", "username": "tok", "password": "x-oauth-basic"},
			[]string{"tok"},
		},
		"git branch with the project's token": {
			"git://github.com/org/repo.git#b", nil,
			map[string]string{"GIT_TOKEN": "github_pat_x", "OTHER": "y"},
			"git", "https://github.com/org/repo.git",
			entry{"branch": "b", "username": "oauth2", "password": "github_pat_x"},
			[]string{"github_pat_x"},
		},
		"git password; the build argument goes first": {
			"git://h/r#b",
			map[string]string{"GIT_USERNAME": "u", "GIT_PASSWORD": "mine"},
			map[string]string{"GIT_PASSWORD": "project's"},
			"git", "https://h/r",
			entry{"branch": "b", "username": "u", "password": "mine"},
			[]string{"u", "mine"},
		},
		"git without credentials": {"git://h/r#a/b#c", nil, nil, "git", "https://h/r", entry{"branch": "a/b#c", "username": "", "password": ""}, nil},
		"git with a login in the address": {
			"git://me:hunter2@h/r#b", nil, nil, "git", "https://me:hunter2@h/r", entry{"branch": "b", "username": "", "password": ""}, []string{"hunter2", "me:hunter2"},
		},
		"gitlab token": {"git://h/r#b", map[string]string{"GIT_TOKEN": "glpat-1"}, nil, "git", "https://h/r", entry{"branch": "b", "username": "oauth2", "password": "glpat-1"}, []string{"glpat-1"}},
		"archive":      {"https://host/a.tar.gz", nil, map[string]string{"V3IO_ACCESS_KEY": "not for it"}, "archive", "https://host/a.tar.gz", none, nil},
		"v3io with a host": {
			"v3ios://host.example/projects/x/a.tar.gz",
			map[string]string{"V3IO_ACCESS_KEY": "ak"},
			nil,
			"archive", "https://host.example/projects/x/a.tar.gz",
			entry{"headers": entry{"X-V3io-Session-Key": "ak"}},
			[]string{"ak", "ak"},
		},
		"v3io without a host": {
			"v3io:///projects/x/a.zip", nil,
			map[string]string{"V3IO_ACCESS_KEY": "ak"},
			"archive", "http://v3io-webapi:8081/projects/x/a.zip",
			entry{"headers": entry{"X-V3io-Session-Key": "ak"}},
			[]string{"ak", "ak"},
		},
		"s3": {
			"s3://bucket/a/b.zip",
			map[string]string{"AWS_ACCESS_KEY_ID": "id"},
			map[string]string{"AWS_SECRET_ACCESS_KEY": "key"},
			"s3", "s3://bucket/a/b.zip",
			entry{"s3Bucket": "bucket", "s3ItemKey": "a/b.zip", "s3AccessKeyId": "id", "s3SecretAccessKey": "key", "s3SessionToken": ""},
			[]string{"id", "key"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spec(`"build": {"source": "` + tc.source + `"}`)
			s.Env, s.Config.V3IOAPI = tc.env, "http://v3io-webapi:8081"
			f := configure(t, s, tc.secrets)
			check(t, f, "spec.build.codeEntryType", tc.kind)
			check(t, f, "spec.build.path", tc.path)
			check(t, f, "spec.build.codeEntryAttributes", tc.attributes)
			check(t, f, "spec.handler", "main:handler")
			if diff := cmp.Diff(tc.hidden, f.Secrets); diff != "" {
				t.Errorf("secrets (-want +got):\n%s", diff)
			}
			shown, err := json.Marshal(f.Shown(strings.ToLower))
			if err != nil {
				t.Fatal(err)
			}
			for _, value := range tc.hidden {
				if strings.Contains(string(shown), `"`+value+`"`) {
					t.Errorf("%s is shown:\n%s", value, shown)
				}
			}
		})
	}
}

func TestHandlersMayNameTheirFolder(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]any{
		"": {nil, "main:handler"}, "main": {nil, "main:handler"}, "a:b": {nil, "a:b"},
		"a/b/c#main:Handler": {"a/b/c", "main:Handler"}, "a/b/c#": {"a/b/c", "main:handler"}, "a#b": {"a", "b:handler"}, "#x": {nil, "x:handler"},
	} {
		f := configure(t, spec(`"function_handler": "`+text+`", "build": {"source": "git://h/r#b"}`), nil)
		check(t, f, "spec.handler", want[1])
		check(t, f, "spec.build.codeEntryAttributes.workDir", want[0])
	}
	f := configure(t, spec(`"function_handler": "a#b", "workdir": "own", "build": {"source": "git://h/r#b"}`), nil)
	check(t, f, "spec.build.codeEntryAttributes.workDir", "own")
}

func TestServingFunctionsGetTheGraphServer(t *testing.T) {
	t.Parallel()
	serving := func(fields string) nuclio.Function {
		s := spec(fields)
		s.Kind = "serving"
		return configure(t, s, nil)
	}
	f := serving(`"graph": {"kind": "router"}, "load_mode": "sync", "secret_sources": [{"kind": "inline", "source": {"A": "hunter2"}}, {"kind": "env", "source": "B"}]`)
	code, err := base64.StdEncoding.DecodeString(at(f, "spec.build.functionSourceCode").(string))
	if err != nil || !strings.Contains(string(code), "nuclio_init_hook") {
		t.Errorf("code = %s, %v", code, err)
	}
	env := at(f, "spec.env").([]any)[1].(map[string]any)
	want := `{"function_uri":"demo/trainer:latest","graph":{"kind":"router"},"load_mode":"sync","secret_sources":[{"kind":"inline","source":{"A":"hunter2"}},{"kind":"env","source":"B"}],"version":"v2"}`
	if env["name"] != "SERVING_SPEC_ENV" || env["value"] != want {
		t.Errorf("graph = %v", env)
	}
	if diff := cmp.Diff([]string{"hunter2"}, f.Secrets); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
	check(t, serving(`"build": {"functionSourceCode": "eA=="}`), "spec.build.functionSourceCode", "eA==")
	check(t, serving(`"build": {"source": "git://h/r#b"}`), "spec.handler", "mlrun.serving.serving_wrapper:handler")
	check(t, serving(`"function_handler": "own:h", "build": {"source": "git://h/r#b"}`), "spec.handler", "own:h")
}

func TestTheRuntimeFollowsTheClient(t *testing.T) {
	t.Parallel()
	for _, tc := range [][4]string{
		// client, its Python, Nuclio, runtime
		{"", "", "", "python:3.9"},
		{"1.3.0", "3.7.1", "", "python:3.7"},
		{"0.0.0+unstable", "3.7.1", "", "python:3.7"},
		{"0.0.0+unstable", "3.9.1", "", "python:3.9"},
		{"0.0.0-abc", "", "", "python:3.9"},
		{"1.2.1", "3.9.0", "", "python:3.7"},
		{"1.2.1", "", "", "python:3.7"},
		{"1.3.0-rc1", "3.9.0", "", "python:3.9"},
		{"1.10.0", "3.9.0", "1.13.0", "python:3.9"},
		{"not a version", "", "", "python:3.9"},
		{"1.7.0", "3.9.0", "1.5.9", "python:3.6"},
	} {
		s := spec(``)
		s.ClientVersion, s.ClientPythonVersion, s.Config.Version = tc[0], tc[1], tc[2]
		check(t, configure(t, s, nil), "spec.runtime", tc[3])
	}
	s := spec(`"nuclio_runtime": "golang"`)
	s.Config = nuclio.Config{Version: "1.5.0", Runtime: "python:3.11"}
	check(t, configure(t, s, nil), "spec.runtime", "golang")
	s = spec(``)
	s.Config.Runtime = "python:3.11"
	check(t, configure(t, s, nil), "spec.runtime", "python:3.11")
}

func TestTheSecretThatDiffersFromItsDefaultWins(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		fields, pull, build string
		want                any
	}{
		{`"image_pull_secret": null, "build": {"secret": null}`, "", "build-default", "build-default"},
		{``, "pull-default", "build-default", "pull-default"},
		{`"image_pull_secret": "mine", "build": {"secret": "other"}`, "pull-default", "build-default", "mine"},
		{`"image_pull_secret": "pull-default", "build": {"secret": "other"}`, "pull-default", "build-default", "other"},
		{`"image_pull_secret": "pull-default", "build": {"secret": "build-default"}`, "pull-default", "build-default", "pull-default"},
		{`"image_pull_secret": ""`, "pull-default", "build-default", nil},
		{``, "", "", nil},
	} {
		s := spec(tc.fields)
		s.Config.ImagePullSecret, s.Config.BuildSecret = tc.pull, tc.build
		check(t, configure(t, s, nil), "spec.imagePullSecrets", tc.want)
	}
}

func TestFaultsNameTheirFieldAndNoSecret(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func() nuclio.Spec{
		"function:": func() nuclio.Spec { return nuclio.Spec{Object: json.RawMessage(`[1]`)} },
		"spec.build.source: git branch or refs must": func() nuclio.Spec { return spec(`"build": {"source": "git://me:hunter2@h/r"}`) },
		"spec.build.source: Nuclio cannot fetch":     func() nuclio.Spec { return spec(`"build": {"source": "store://me:hunter2@h/r"}`) },
		"spec.build.source: names no object":         func() nuclio.Spec { return spec(`"build": {"source": "s3://bucket"}`) },
		"spec.build.source: names no host":           func() nuclio.Spec { return spec(`"build": {"source": "v3io:///x"}`) },
		`spec.config["spec.runtime.x"]: "runtime"`:   func() nuclio.Spec { return spec(`"config": {"spec.runtime": "a", "spec.runtime.x": "b"}`) },
		"spec.config[spec.build.commands]: must be":  func() nuclio.Spec { return spec(`"config": {"spec.build.commands": [1]}`) },
		"spec.base_spec.metadata.labels: must be an": func() nuclio.Spec { return spec(`"base_spec": {"metadata": {"labels": "x"}}`) },
		"spec.env[1]: must be an object with a name": func() nuclio.Spec { return spec(`"env": [{"name": "A", "value": "b"}, "hunter2"]`) },
		"spec.volumes: must be a list":               func() nuclio.Spec { return spec(`"volumes": ["x"]`) },
		"spec.nuclio_runtime: Nuclio 1.5.0 has no": func() nuclio.Spec {
			s := spec(`"nuclio_runtime": "python:3.9"`)
			s.Config.Version = "1.5.0"
			return s
		},
		"metadata.name: Nuclio calls": func() nuclio.Spec {
			s := spec(``)
			s.Name = strings.Repeat("a", 60)
			return s
		},
	} {
		_, err := change().Function(nil)
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
