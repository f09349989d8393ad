package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder/registry"
	"kiln/cmd/cli"
)

// registryOf parses a worker's command line and returns what it says of registries.
func registryOf(t *testing.T, args ...string) registry.Config {
	t.Helper()
	var c commands
	parser, err := newParser(&c, cli.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{"worker"}, args...)); err != nil {
		t.Fatal(err)
	}
	return c.Worker.registry()
}

func TestRegistrySettingsFromFileEnvironmentAndFlags(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	file := filepath.Join(dir, "kiln.yaml")
	settings := "registry:\n  secrets_dir: " + dir + "\n  cloud: [ecr, gar]\n  ca: " + ca + "\n  hosts:\n" +
		"    docker.io: {mirrors: [mirror.example/hub, 127.0.0.1:5001]}\n" +
		"    corp.example:5000:\n      ca: /etc/kiln/corp.pem\n      cert: /c\n      key: /k\n" +
		"    lab.example: {skip_tls_verify: true}\n    plain.example:\n"
	for path, text := range map[string]string{ca: "x", file: settings} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := registry.Config{
		Secrets: registry.Dir(dir), Clouds: []string{"ecr", "gar"}, CA: ca, Hosts: map[string]registry.Host{
			"docker.io":         {Mirrors: []string{"mirror.example/hub", "127.0.0.1:5001"}},
			"corp.example:5000": {CA: "/etc/kiln/corp.pem", Cert: "/c", Key: "/k"},
			"lab.example":       {SkipTLSVerify: true},
			"plain.example":     {},
		},
	}
	if diff := cmp.Diff(want, registryOf(t, "--config", file)); diff != "" {
		t.Errorf("from the file (-want +got):\n%s", diff)
	}
	t.Setenv("KILN_REGISTRY_HOSTS", `{env.example: {insecure: true}}`)
	want.Hosts = map[string]registry.Host{"env.example": {Insecure: true}}
	if diff := cmp.Diff(want, registryOf(t, "--config", file)); diff != "" {
		t.Errorf("from the environment (-want +got):\n%s", diff)
	}
	want.Hosts = map[string]registry.Host{"flag.example": {CA: "/a,b;c=d"}}
	if diff := cmp.Diff(want, registryOf(t, "--config", file, "--registry-hosts", `{"flag.example": {"ca": "/a,b;c=d"}}`)); diff != "" {
		t.Errorf("from the flag (-want +got):\n%s", diff)
	}
}

func TestMistakesInRegistrySettingsAreNamed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		args []string
		text string
	}{
		"no YAML":         {[]string{"--registry-hosts", "{a: "}, "--registry-hosts"},
		"unknown key":     {[]string{"--registry-hosts", "{a.example: {mirror: [b]}}"}, `unknown field "mirror"`},
		"wrong type":      {[]string{"--registry-hosts", "{a.example: {insecure: maybe}}"}, "insecure"},
		"old style":       {[]string{"--registry-hosts", "a.example"}, "{registry.example.com: {ca: /etc/kiln/ca.pem}}"},
		"key alone":       {[]string{"--registry-hosts", "{a.example: {key: /k}}"}, `"a.example": a client certificate needs both cert and key`},
		"missing file":    {[]string{"--registry-hosts", "{a.example: {ca: /nowhere/ca.pem}}"}, "/nowhere/ca.pem"},
		"unknown cloud":   {[]string{"--registry-cloud", "ecr,s3"}, `cloud "s3" must be ecr, gar or acr`},
		"no such folder":  {[]string{"--registry-secrets-dir", "/nowhere"}, "/nowhere"},
		"CA of all":       {[]string{"--registry-ca", "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		"mirror with URL": {[]string{"--registry-hosts", "{docker.io: {mirrors: ['https://m.example']}}"}, `mirror "https://m.example"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, errs, code := execute(t, functionYAML, append([]string{"plan", "-f", "-", "--registry-url", "r.example.com"}, tc.args...)...)
			if code != cli.ExitUsage || !strings.Contains(errs, tc.text) {
				t.Errorf("exit code %d, want 2 and %q in: %s%s", code, tc.text, out, errs)
			}
		})
	}
}

func TestPlanShowsHowRegistriesAreReached(t *testing.T) {
	t.Parallel()
	out, errs, code := execute(t, functionYAML, "plan", "-f", "-", "--registry-url", "r.example.com", "--registry-insecure", "r.example.com",
		"--registry-hosts", "{docker.io: {mirrors: [m.example/hub]}, m.example: {skip_tls_verify: true}}")
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"--insecure-registry=r.example.com", "--registry-map=index.docker.io=m.example/hub", "--skip-tls-verify-registry=m.example"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %s:\n%s", want, out)
		}
	}
}
