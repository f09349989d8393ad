package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/kube"
)

func TestContextPreparesAWorkspaceOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	plan, workspace := t.TempDir(), t.TempDir()
	message := filepath.Join(t.TempDir(), "termination-log")
	args := []string{"context", "--plan", plan, "--workspace", workspace, "--termination-log", message}
	_, errs, code := execute(t, "", args...)
	var said struct{ Kind, Message string }
	raw, err := os.ReadFile(message)
	if err == nil {
		err = json.Unmarshal(raw, &said)
	}
	if code != exitFailed || err != nil || said.Kind != string(builder.KindUnavailable) || !strings.Contains(said.Message, "plan.json") {
		t.Errorf("without a plan: exit code %d, %s, termination message %s (%v)", code, errs, raw, err)
	}
	if err := os.WriteFile(filepath.Join(plan, "plan.json"), []byte(`{"build_id":"1","dockerfile":"FROM scratch\n"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := execute(t, "", args...)
	written, err := os.ReadFile(filepath.Join(workspace, "Dockerfile"))
	if code != exitOK || err != nil || string(written) != "FROM scratch\n" || !strings.Contains(out, "Wrote the Dockerfile") {
		t.Errorf("exit code %d, Dockerfile %q (%v)\n%s%s", code, written, err, out, errs)
	}
}

func TestKubernetesSettingsReachTheEngine(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "kiln.yaml")
	settings := `
engine: kube
kube:
  image: registry.example.com/kiln:v1
  namespace: builds
  node_selector: {pool: builds, kubernetes.io/arch: arm64}
  tolerations: '[{"key":"builds","operator":"Exists"}]'
  classes: {big: "cpu:2/8,memory:4Gi/32Gi", default: "memory:1Gi/2Gi"}
  project_classes: {vision: big}
  zero: [nvidia.com/gpu]
  user_namespaces: true
  unschedulable: 90s
registry: {insecure: [intern:5000]}
`
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	var c cli
	parser, err := newParser(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"--config", file, "worker", "--kube-service-accounts", "a,b"}); err != nil {
		t.Fatal(err)
	}
	cfg, err := c.Worker.Kube.config(c.Worker.Registry)
	if err != nil || c.Worker.Engine != "kube" {
		t.Fatalf("engine %s: %v", c.Worker.Engine, err)
	}
	big := cfg.Classes["big"]
	got := []any{
		cfg.Namespace, cfg.ContextImage, cfg.ExecutorImage, cfg.NodeSelector, cfg.Tolerations[0].Key, big.Limits.Memory().String(), cfg.ProjectClasses,
		cfg.Zero, cfg.UserNamespaces, cfg.Waits.Unschedulable, cfg.ServiceAccounts, cfg.Insecure, cfg.TTL,
	}
	want := []any{
		"builds", "registry.example.com/kiln:v1", "ghcr.io/osscontainertools/kaniko:v1.27.5",
		map[string]string{"pool": "builds", "kubernetes.io/arch": "arm64"},
		"builds", "32Gi",
		map[string]string{"vision": "big"},
		[]string{"nvidia.com/gpu"},
		true, 90 * time.Second,
		[]string{"a", "b"},
		[]string{"intern:5000"},
		15 * time.Minute,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestKubernetesSettingsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	for says, f := range map[string]kubeFlags{
		"--kube-image":       {},
		"--kube-classes: x":  {Image: "i", Classes: map[string]string{"x": "lots"}},
		"--kube-tolerations": {Image: "i", Tolerations: "builds"},
	} {
		var err error
		if f.Image == "" {
			_, err = f.engine(t.Context(), registryFlags{}, (&cli{}).logger(streams{err: &strings.Builder{}}))
		} else {
			_, err = f.config(registryFlags{})
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error with %q", err, says)
		}
	}
}

func TestLoginsOfABuildAreThoseOfItsHosts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.json")
	entries := `{"auths":{"intern:5000":{"username":"robot","password":"pw"},"https://index.docker.io/v1/":{"auth":"YTpi"},"other.example.com":{"auth":"YzpkCg=="}}}`
	if err := os.WriteFile(path, []byte(entries), 0o600); err != nil {
		t.Fatal(err)
	}
	var login kube.Credentials = dockerLogins{path: path}
	got, err := login.DockerConfig(t.Context(), "", []string{"intern:5000", "index.docker.io", "third.example.com"})
	want := `{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"},"intern:5000":{"auth":"cm9ib3Q6cHc="}}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
	if got, err := (dockerLogins{}).DockerConfig(t.Context(), "", []string{"x"}); err != nil || string(got) != `{"auths":{}}` {
		t.Errorf("without a file: %s (%v)", got, err)
	}
	if _, err := login.DockerConfig(t.Context(), "named", nil); builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "named") {
		t.Errorf("named secret: %v, want invalid_request", err)
	}
}
