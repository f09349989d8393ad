package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/source/archive"
	"kiln/cmd/cli"
	"kiln/events/client"
	"kiln/events/natsbus"
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
	if code != cli.ExitFailed || err != nil || said.Kind != string(builder.KindUnavailable) || !strings.Contains(said.Message, "plan.json") {
		t.Errorf("without a plan: exit code %d, %s, termination message %s (%v)", code, errs, raw, err)
	}
	if err := os.WriteFile(filepath.Join(plan, "plan.json"), []byte(`{"build_id":"1","dockerfile":"FROM scratch\n"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := execute(t, "", args...)
	written, err := os.ReadFile(filepath.Join(workspace, "Dockerfile"))
	if code != cli.ExitOK || err != nil || string(written) != "FROM scratch\n" || !strings.Contains(out, "Wrote the Dockerfile") {
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
`
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	var c commands
	parser, err := newParser(&c, cli.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse([]string{"--config", file, "worker", "--kube-service-accounts", "a,b"}); err != nil {
		t.Fatal(err)
	}
	cfg, err := c.Worker.Kube.config()
	if err != nil || c.Worker.Engine != "kube" {
		t.Fatalf("engine %s: %v", c.Worker.Engine, err)
	}
	big := cfg.Classes["big"]
	got := []any{
		cfg.Namespace, cfg.ContextImage, cfg.ExecutorImage, cfg.NodeSelector, cfg.Tolerations[0].Key, big.Limits.Memory().String(), cfg.ProjectClasses,
		cfg.Zero, cfg.UserNamespaces, cfg.Waits.Unschedulable, cfg.ServiceAccounts, cfg.TTL,
	}
	want := []any{
		"builds", "registry.example.com/kiln:v1", "ghcr.io/osscontainertools/kaniko:v1.27.5",
		map[string]string{"pool": "builds", "kubernetes.io/arch": "arm64"},
		"builds", "32Gi",
		map[string]string{"vision": "big"},
		[]string{"nvidia.com/gpu"},
		true, 90 * time.Second,
		[]string{"a", "b"},
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
			_, err = (&workerCmd{Kube: f}).kube(t.Context(), nil, zerolog.Nop())
		} else {
			_, err = f.config()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error with %q", err, says)
		}
	}
}

func TestPodFetchesAnUploadedSourceWithSettingsOfTheWorker(t *testing.T) {
	t.Parallel()
	server, err := startNATS(t.TempDir(), "127.0.0.1:0", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.stop)
	nc, err := server.connect(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), js, topologyFlags{}.topology("acme")); err != nil {
		t.Fatal(err)
	}
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "main.py"), []byte("print()\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	version, _, err := archive.Pack(code, &packed)
	if err != nil {
		t.Fatal(err)
	}
	uploader, err := client.New(nc, client.WithPrefix("acme"))
	if err != nil {
		t.Fatal(err)
	}
	url, err := uploader.UploadContext(t.Context(), bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	w := &workerCmd{NATS: cli.NATSFlags{URL: strings.Replace(server.url(), "://", "://worker:hush@", 1), Prefix: "acme"}}
	settings, err := w.podSources()
	if err != nil || bytes.Contains(settings, []byte("hush")) {
		t.Fatalf("settings %s (%v) must not hold the worker's login", settings, err)
	}
	plan, workspace := t.TempDir(), t.TempDir()
	document, err := json.Marshal(map[string]any{"dockerfile": "FROM scratch\n", "source": map[string]any{"url": url, "version": version, "settings": settings}})
	if err == nil {
		err = os.WriteFile(filepath.Join(plan, "plan.json"), document, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, errs, exit := execute(t, "", "context", "--plan", plan, "--workspace", workspace, "--termination-log", filepath.Join(t.TempDir(), "log"))
	fetched, err := os.ReadFile(filepath.Join(workspace, "context", "source", "main.py"))
	if exit != cli.ExitOK || err != nil || string(fetched) != "print()\n" {
		t.Errorf("exit code %d, fetched %q (%v)\n%s%s", exit, fetched, err, out, errs)
	}
}
