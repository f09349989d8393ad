package kaniko

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func plan() builder.Plan {
	return builder.Plan{
		Dockerfile:  "FROM localhost:5000/base@sha256:" + strings.Repeat("0", 64) + "\nRUN x\nFROM --platform=linux/arm64 python:3.12 AS two\nFROM scratch\n",
		BuildArgs:   []builder.Arg{{Name: "GIT_TOKEN", Value: "hidden-one", Secret: true}, {Name: "HTTP_PROXY", Value: "http://proxy:1"}},
		Secrets:     []builder.Secret{{ID: "PIP_INDEX_URL", Value: "hidden-two"}},
		Destination: "127.0.0.1:5001/team/image:kiln-1",
		Platform:    "linux/amd64",
		Executor:    builder.DefaultExecutor(),
	}
}

func TestArgs(t *testing.T) {
	t.Parallel()
	want := []string{
		"--dockerfile=/kaniko/build/Dockerfile", "--context=/kaniko/build/context", "--destination=127.0.0.1:5001/team/image:kiln-1",
		"--digest-file=/d", "--custom-platform=linux/amd64", "--log-format=json", "--force", "--push-retry=3", "--image-fs-extract-retry=3",
		"--credential-helpers=", "--insecure-registry=intern:80", "--insecure-registry=127.0.0.1:5001", "--insecure-registry=localhost:5000",
		"--build-arg=GIT_TOKEN", "--build-arg=HTTP_PROXY", "--secret=id=PIP_INDEX_URL,type=env,env=KILN_SECRET_0", "--snapshot-mode=redo",
	}
	if diff := cmp.Diff(want, Args(plan(), Options{DigestFile: "/d", Registries: []builder.Access{{Host: "intern:80", Insecure: true}}})); diff != "" {
		t.Errorf("Args (-want +got):\n%s", diff)
	}
}

func TestValuesAreInTheEnvironmentOnly(t *testing.T) {
	t.Parallel()
	args := strings.Join(Args(plan(), Options{CredentialHelpers: []string{"ecr"}}), " ")
	env := strings.Join(Env(plan()), " ")
	for _, hidden := range []string{"hidden-one", "hidden-two", "http://proxy:1"} {
		if strings.Contains(args, hidden) || !strings.Contains(env, hidden) {
			t.Errorf("%s must be in the environment and not in the arguments:\n%s\n%s", hidden, args, env)
		}
	}
}

func TestCheckRefusesWhatWouldChangeTheExecutor(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"PATH", "HOME", "LD_PRELOAD", "DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "KANIKO_DIR", "KANIKO_NO_PUSH", "FF_KANIKO_RUN_VIA_TINI",
		"SSL_CERT_FILE", "GODEBUG", "KILN_SECRET_0", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "BUILDER_OUTPUT", "TMPDIR",
		"", "1A", "A=B", "A B", "A\nB", "A-B", "Ä",
	} {
		p := plan()
		p.BuildArgs = []builder.Arg{{Name: name, Value: "x"}}
		err := Check(p)
		if builder.KindOf(err) != builder.KindInvalidRequest || err == nil {
			t.Errorf("Check(build argument %q) = %v, want invalid_request", name, err)
		} else if !strings.Contains(err.Error(), strings.ReplaceAll(name, "\n", `\n`)) {
			t.Errorf("%v does not name %q", err, name)
		}
	}
	for _, name := range []string{"GIT_TOKEN", "http_proxy", "NO_PROXY", "PIP_INDEX_URL", "A1", "_x", "AWS_REGION", "PATHS"} {
		p := plan()
		p.BuildArgs = []builder.Arg{{Name: name, Value: "x"}}
		if err := Check(p); err != nil {
			t.Errorf("Check(build argument %s) = %v", name, err)
		}
	}
}

func TestCheckRefusesValuesThatCannotBePassed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*builder.Plan){
		"NUL in a build argument": func(p *builder.Plan) { p.BuildArgs[0].Value = "a\x00b" },
		"NUL in a secret":         func(p *builder.Plan) { p.Secrets[0].Value = "a\x00b" },
		"huge build argument":     func(p *builder.Plan) { p.BuildArgs[0].Value = strings.Repeat("x", maxValue+1) },
		"many large build arguments": func(p *builder.Plan) {
			p.BuildArgs = nil
			for i := range 20 {
				p.BuildArgs = append(p.BuildArgs, builder.Arg{Name: fmt.Sprint("A", i), Value: strings.Repeat("x", 90<<10)})
			}
		},
		"secret id with a comma":   func(p *builder.Plan) { p.Secrets[0].ID = "a,src=/etc/shadow" },
		"secret id that is a path": func(p *builder.Plan) { p.Secrets[0].ID = "../x" },
	} {
		p := plan()
		change(&p)
		err := Check(p)
		if err == nil || builder.KindOf(err) != builder.KindInvalidRequest {
			t.Errorf("%s: %v, want invalid_request", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: the error shows a value: %v", name, err)
		}
	}
	if err := Check(plan()); err != nil {
		t.Errorf("Check(plan) = %v", err)
	}
}

func TestSecretsMayBeFiles(t *testing.T) {
	t.Parallel()
	args := strings.Join(Args(plan(), Options{SecretDir: "/s"}), " ")
	if !strings.Contains(args, "--secret=id=PIP_INDEX_URL,type=file,src=/s/0") || strings.Contains(args, "type=env") {
		t.Errorf("arguments: %s", args)
	}
}
