//go:build kube

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"

	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
	"kiln/cmd/cli"
	"kiln/deploy/nats/natstest"
)

// TestWorkersOfTheChartBuildInTheCluster installs Kiln as docs/kubernetes.md says, and
// has it make images as its users do.
func TestWorkersOfTheChartBuildInTheCluster(t *testing.T) {
	p := newPlant(t)
	python := p.images.host + "/platform/python:1"
	pushPython(t, python, p.images.options...)
	mlrun := p.cluster.NewNamespace(t, "baseline")
	p.secret(t, mlrun, "mlrun-project-secrets-demo", map[string]string{"GIT_TOKEN": gitToken, "API_KEY": projectSecret})
	p.secret(t, p.workers, "mlrun-project-secrets-vision", map[string]string{"API_KEY": projectSecret})
	p.secrets(t)
	values := p.values(t, map[string]any{
		"projects": map[string]any{
			"lookup":  map[string]any{"namespace": mlrun, "only": []string{"demo"}},
			"secrets": map[string]any{"vision": "mlrun-project-secrets-vision"},
		},
		"config": map[string]any{
			"mlrun":  map[string]any{"image_by_kind": map[string]any{"job": python}},
			"source": map[string]any{"insecure": []string{p.address}},
			"kube":   map[string]any{"classes": map[string]any{"default": "cpu:10m/,memory:64Mi/2Gi"}},
		},
	})
	began := time.Now()
	p.install(t, values)
	t.Logf("figures: Helm installed two workers in %s", time.Since(began).Round(100*time.Millisecond))
	seen := p.watchBuilds(t)

	t.Run("doctor finds all", p.doctorFindsAll)
	t.Run("trainer", func(t *testing.T) { p.buildsTheTrainer(t, python) })
	t.Run("git-source", p.buildsFromGit)
	t.Run("local-folder", p.buildsAFolder)
	t.Run("nothing is left", p.leavesNothing)
	t.Run("nothing is shown", func(t *testing.T) { p.showsNoSecret(t, seen()) })
	for _, pod := range p.workerPods(t) {
		for _, c := range pod.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				t.Errorf("the worker %s was started again %d times", pod.Name, c.RestartCount)
			}
		}
	}
	t.Logf("figures: a worker after its builds takes %s", strings.Join(p.memory(t), " and "))
}

// build requests an image as a person at a command line, and wants it made.
func (p *plant) build(t *testing.T, function []byte, args ...string) (result built, log string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "function.yaml")
	if err := os.WriteFile(file, function, 0o600); err != nil {
		t.Fatal(err)
	}
	began, id := time.Now(), filepath.Base(t.Name())
	out, errs, code := p.run(t.Context(), append([]string{"build", "-f", file, "--id", id, "--follow", "--wait", "4m"}, args...)...)
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s%s\n%s", code, out, errs, p.describe(t))
	}
	took := time.Since(began).Round(100 * time.Millisecond)
	var answer struct{ Completed built }
	status, _, _ := p.run(t.Context(), "status", id, "-o", "json")
	if err := json.Unmarshal([]byte(status), &answer); err != nil {
		t.Fatalf("%v: %s", err, status)
	}
	result = answer.Completed
	repository, digest, _ := strings.Cut(result.ImageRef, "@")
	if got := p.images.digest(t, result.Image); got != digest || digest != result.Digest || !strings.HasPrefix(repository, p.images.host+"/") {
		t.Errorf("%s is %s in the registry, want %s of %s", result.Image, got, result.Digest, result.ImageRef)
	}
	if result.Outcome != "built" || result.Engine != "kube" {
		t.Errorf("%s by %s", result.Outcome, result.Engine)
	}
	t.Logf("figures: built in %s from request to answer", took)
	return result, out + errs
}

func (p *plant) buildsTheTrainer(t *testing.T, base string) {
	t.Helper()
	const requirements = "kiln-demo-features==1.0,kiln-demo-model==1.0"
	function, err := exec.CommandContext(t.Context(), "go", "run", "kiln/deploy/demo", "function",
		"-base", base, "-requirements", requirements, filepath.Join("..", "..", "examples", "trainer", "function.yaml")).Output()
	if err != nil {
		t.Fatal(err)
	}
	made, log := p.build(t, function)
	if !strings.Contains(log, "Successfully installed kiln-demo-features-1.0 kiln-demo-model-1.0") {
		t.Errorf("the log is\n%s", log)
	}
	printed := p.runImage(t, made.ImageRef, "python", "/opt/trainer/versions.py", "kiln-demo-features", "kiln-demo-model")
	for _, want := range []string{"kiln-demo-features 1.0 from ", "kiln-demo-model 1.0 from "} {
		if !strings.Contains(printed, want) {
			t.Errorf("the image prints %q, want %q", printed, want)
		}
	}
}

// asYAML is a function of a project.
func asYAML(t *testing.T, project, name string, build map[string]any) []byte {
	t.Helper()
	build["with_mlrun"] = false
	raw, err := yaml.Marshal(map[string]any{"kind": "job", "metadata": map[string]any{"name": name, "project": project}, "spec": map[string]any{"build": build}})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (p *plant) buildsFromGit(t *testing.T) {
	repo, address := gitRepository(t, p.address, gitToken)
	commit(t, repo, "print('trained')")
	base := enginetest.PushBase(t, p.bases.host+"/team/base", p.bases.options...).Ref
	made, log := p.build(t, asYAML(t, "demo", "from-git", map[string]any{
		"base_image": base, "secret": baseSecret, "source": address + "#main",
		"commands": []string{`test "${#API_KEY}" = 21 && echo "the key is $API_KEY"`, "cat /home/mlrun_code/main.py"},
	}))
	if !strings.Contains(log, "the key is ***") || !strings.Contains(log, "print('trained')") {
		t.Errorf("the log is\n%s", log)
	}
	if got := p.runImage(t, made.ImageRef, "/bin/sh", "-c", "cat /home/mlrun_code/main.py; env"); !strings.HasPrefix(got, "print('trained')\n") || strings.Contains(got, projectSecret) {
		t.Errorf("the image prints %q", got)
	}
}

func (p *plant) buildsAFolder(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "model.py"), []byte("weights = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := enginetest.PushBase(t, p.images.host+"/platform/base", p.images.options...).Ref
	made, log := p.build(t, asYAML(t, "vision", "from-folder", map[string]any{
		"base_image": base, "commands": []string{`echo "the key is $API_KEY"`},
	}), "--source", folder)
	if !strings.Contains(log, "the key is ***") {
		t.Errorf("the log is\n%s", log)
	}
	if got := p.runImage(t, made.ImageRef, "cat", "/home/mlrun_code/model.py"); got != "weights = 1\n" {
		t.Errorf("the image has %q", got)
	}
}

// doctorFindsAll runs kiln doctor in a Pod like those of workers.
func (p *plant) doctorFindsAll(t *testing.T) {
	deployment, err := p.cluster.Admin.AppsV1().Deployments(p.workers).Get(t.Context(), "kiln", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	spec := deployment.Spec.Template.Spec
	c := &spec.Containers[0]
	c.Args = []string{"doctor", "--kube", "--config", "/etc/kiln/config/kiln.yaml"}
	c.LivenessProbe, c.ReadinessProbe = nil, nil
	log, code := p.cluster.RunPod(t, p.workers, spec)
	if code != cli.ExitOK || !strings.Contains(log, "all 11 in namespace "+p.builds) {
		t.Errorf("exit code %d:\n%s", code, log)
	}
}

// leavesNothing waits until the namespace of builds has what it had before.
func (p *plant) leavesNothing(t *testing.T) {
	const ofBuilds = "app.kubernetes.io/component=build"
	core := p.cluster.Admin.CoreV1()
	kubetest.Eventually(t, "the objects of builds to go", func() bool {
		jobs, err := p.cluster.Admin.BatchV1().Jobs(p.builds).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(jobs.Items) > 0 {
			return false
		}
		pods, err := core.Pods(p.builds).List(t.Context(), metav1.ListOptions{LabelSelector: ofBuilds})
		if err != nil || len(pods.Items) > 0 {
			return false
		}
		secrets, err := core.Secrets(p.builds).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(secrets.Items) == 1 && secrets.Items[0].Name == pullSecret
	})
}

// showsNoSecret looks for passwords where people and other programs look.
func (p *plant) showsNoSecret(t *testing.T, objects string) {
	t.Helper()
	places := map[string]string{"Jobs and Pods": objects}
	for _, pod := range p.workerPods(t) {
		places["log of "+pod.Name] = p.log(t, p.workers, pod.Name)
	}
	if len(places) != 3 || !strings.Contains(objects, "kiln.dev/build-id") {
		t.Fatalf("there are %d places to look at", len(places))
	}
	for place, text := range places {
		for _, secret := range []string{p.images.password, p.bases.password, natstest.Password, gitToken, projectSecret} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %q is shown", place, secret)
			}
		}
	}
}

// watchBuilds notes every state of the Jobs and Pods in the namespace of builds.
func (p *plant) watchBuilds(t *testing.T) (seen func() string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	var all strings.Builder
	var work sync.WaitGroup
	follow := func(w watch.Interface, err error) {
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for event := range w.ResultChan() {
				if raw, err := json.Marshal(event.Object); err == nil {
					mu.Lock()
					all.Write(raw)
					mu.Unlock()
				}
			}
		})
		context.AfterFunc(ctx, w.Stop)
	}
	follow(p.cluster.Admin.BatchV1().Jobs(p.builds).Watch(ctx, metav1.ListOptions{}))
	follow(p.cluster.Admin.CoreV1().Pods(p.builds).Watch(ctx, metav1.ListOptions{}))
	t.Cleanup(func() {
		stop()
		work.Wait()
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

// memory is what the node says that each worker uses.
func (p *plant) memory(t *testing.T) (used []string) {
	t.Helper()
	raw, err := p.cluster.Admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", kubetest.Node, "proxy/stats/summary").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var summary struct {
		Pods []struct {
			PodRef struct{ Name, Namespace string } `json:"podRef"`
			Memory struct {
				WorkingSetBytes int64 `json:"workingSetBytes"`
			} `json:"memory"`
		} `json:"pods"`
	}
	if err := json.Unmarshal(raw, &summary); err != nil {
		t.Fatal(err)
	}
	workers := p.workerPods(t)
	for _, pod := range summary.Pods {
		if slices.ContainsFunc(workers, func(w corev1.Pod) bool { return w.Name == pod.PodRef.Name && w.Namespace == pod.PodRef.Namespace }) {
			used = append(used, fmt.Sprintf("%d MiB", pod.Memory.WorkingSetBytes>>20))
		}
	}
	return used
}
