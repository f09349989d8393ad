//go:build kube

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
	"kiln/deploy/nats/natstest"
	"kiln/events/natsbus"
)

// plant is what a platform team has around Kiln: a cluster with a node, NATS with TLS and
// a user per role, registries with TLS and passwords, a package index. All but the node
// is served by the test, at the address where Pods reach this machine. What the embedded
// kiln runs are commands of a person with the role client.
type plant struct {
	*kiln
	cluster *kubetest.Cluster
	address string
	ca      *enginetest.Authority
	nats    string
	// images takes what is built, and has Kiln's own images; bases only has bases.
	images, bases privateRegistry
	index         string
	// workers and builds are namespaces; that of builds is made by the chart.
	workers, builds string
	helm            string
}

// Keys of Secrets and ConfigMaps, as in docs/kubernetes.md.
const (
	keyUser, keyPassword, keyCA = "user", "password", "ca.crt"
	pullSecret, pushSecret      = "pull", "push"
	baseSecret                  = "team-bases"
)

func newPlant(t *testing.T) *plant {
	t.Helper()
	cluster := kubetest.Real(t)
	p := &plant{cluster: cluster, address: cluster.NodeAddress(t), ca: enginetest.NewAuthority(t)}
	bin, _, _ := kubetest.Kiln(t)
	p.helm = kubetest.Program(t, "KILN_TEST_HELM", "helm")
	certificate, key := p.ca.Issue(t, p.address)
	p.nats = natstest.Start(t, p.address, certificate, key)
	p.images = newPrivateRegistry(t, p.ca, p.address, "pusher", "e2e-push-password")
	p.bases = newPrivateRegistry(t, p.ca, p.address, "reader", "e2e-base-password")
	p.index = packageIndex(t, p.ca, p.address)
	cluster.Trust(t, p.images.host, p.ca.File)
	p.workers = cluster.NewNamespace(t, "restricted")
	p.builds = p.workers + "-builds"
	p.kiln = &kiln{dir: t.TempDir(), bin: bin, NATSURL: p.nats, Registry: p.images.host}
	p.env = append(os.Environ(), "HOME="+p.dir, "XDG_DATA_HOME=", "KILN_NATS_CA="+p.ca.File, "KILN_NATS_USER=kiln-client",
		"KILN_NATS_PASSWORD="+natstest.Password, "KILN_NATS_INBOX_PREFIX="+natsbus.Topology{}.InboxPrefix(natsbus.RoleClient))
	return p
}

// pushImage assembles one of Kiln's images and pushes it, and returns its digest.
func (p *plant) pushImage(t *testing.T, image string, programs ...string) (digest string) {
	t.Helper()
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths":{`+p.images.login()+`}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "kiln/deploy/image", image,
		"-binary", "linux/"+runtime.GOARCH+"="+strings.Join(programs, ","), "-push", p.images.host+"/platform/"+image+":test")
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+config, "SSL_CERT_FILE="+p.ca.File)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("image %s: %v\n%s", image, err, &errs)
	}
	return strings.TrimSpace(string(out))
}

// secrets makes what docs/kubernetes.md has the operator make beforehand.
func (p *plant) secrets(t *testing.T) {
	t.Helper()
	ca, err := os.ReadFile(p.ca.File)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []natsbus.Role{natsbus.RoleWorker, natsbus.RoleOperator, natsbus.RoleBuild} {
		p.secret(t, p.workers, "nats-"+string(role), map[string]string{keyUser: "kiln-" + string(role), keyPassword: natstest.Password, keyCA: string(ca)})
	}
	p.secret(t, p.workers, "pip", map[string]string{"index-url": p.index + "/simple/"})
	p.secret(t, p.workers, pushSecret, dockerConfig(p.images))
	p.secret(t, p.workers, pullSecret, dockerConfig(p.images))
	p.secret(t, p.workers, baseSecret, dockerConfig(p.bases))
	if _, err := p.cluster.Admin.CoreV1().ConfigMaps(p.workers).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "company-ca"}, Data: map[string]string{keyCA: string(ca)},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func dockerConfig(r privateRegistry) map[string]string {
	return map[string]string{corev1.DockerConfigJsonKey: `{"auths":{` + r.login() + `}}`}
}

func (p *plant) secret(t *testing.T, namespace, name string, data map[string]string) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
	if _, ok := data[corev1.DockerConfigJsonKey]; ok {
		secret.Type = corev1.SecretTypeDockerConfigJson
	}
	if _, err := p.cluster.Admin.CoreV1().Secrets(namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// values are those of the chart. more goes before them.
func (p *plant) values(t *testing.T, more map[string]any) map[string]any {
	t.Helper()
	kiln, kilnd, launcher := kubetest.Kiln(t)
	login := map[string]any{"user": keyUser, "password": keyPassword, "ca": keyCA}
	inbox := func(role natsbus.Role) string { return natsbus.Topology{}.InboxPrefix(role) }
	values := map[string]any{
		"image":            map[string]any{"repository": p.images.host + "/platform/kiln", "digest": p.pushImage(t, "kiln", kiln, kilnd, launcher)},
		"imagePullSecrets": []string{pullSecret},
		"nats":             map[string]any{"url": p.nats, "inboxPrefix": inbox(natsbus.RoleWorker), "secret": "nats-worker", "keys": login},
		"provision":        map[string]any{"enabled": true, "inboxPrefix": inbox(natsbus.RoleOperator), "secret": "nats-operator", "keys": login},
		"registry": map[string]any{
			"url": p.images.host + "/ml", "dockerConfigSecret": pushSecret, "secrets": []string{baseSecret}, "ca": map[string]any{"configMap": "company-ca"},
		},
		"pip": map[string]any{"indexURL": map[string]any{"secret": "pip"}, "ca": map[string]any{"configMap": "company-ca"}},
		"builds": map[string]any{
			"namespace": p.builds, "createNamespace": true,
			"executorImage": p.images.host + "/platform/kaniko@" + p.pushImage(t, "kaniko", kubetest.Executor(t)),
			"nats":          map[string]any{"secret": "nats-build", "keys": map[string]any{"user": keyUser, "password": keyPassword}},
		},
		"worker": map[string]any{"resources": map[string]any{"requests": map[string]any{"cpu": "10m"}}},
	}
	maps.Copy(values, more)
	return values
}

// install installs the chart by Helm, which waits until workers are ready.
func (p *plant) install(t *testing.T, values map[string]any) {
	t.Helper()
	raw, err := yaml.Marshal(values)
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := errors.Join(err, os.WriteFile(file, raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.uninstall(t) })
	out, err := p.runHelm(t, "install", "kiln", filepath.Join("..", "..", "deploy", "chart"), "-f", file, "--wait", "--timeout", "3m")
	if err != nil {
		t.Fatalf("helm install: %v\n%s\n%s", err, out, p.describe(t))
	}
	p.secret(t, p.builds, pullSecret, dockerConfig(p.images))
}

// uninstall is for the end. The namespace of builds is left by Helm.
func (p *plant) uninstall(t *testing.T) {
	t.Helper()
	defer func() {
		namespaces := p.cluster.Admin.CoreV1().Namespaces()
		if err := namespaces.Delete(context.WithoutCancel(t.Context()), p.builds, metav1.DeleteOptions{}); err != nil && !t.Failed() {
			t.Errorf("the namespace of builds: %v", err)
		}
	}()
	if t.Failed() {
		t.Log(p.describe(t))
	}
	if out, err := p.runHelm(t, "uninstall", "kiln", "--wait", "--timeout", "2m", "--ignore-not-found"); err != nil {
		t.Errorf("helm uninstall: %v\n%s", err, out)
	}
}

func (p *plant) runHelm(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), p.helm, append(args, "--namespace", p.workers)...)
	cmd.Env = append(slices.Clone(p.env), "KUBECONFIG="+filepath.Join(p.cluster.Dir, "admin.kubeconfig"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// workerPods are the Pods of the Deployment.
func (p *plant) workerPods(t *testing.T) []corev1.Pod {
	t.Helper()
	list, err := p.cluster.Admin.CoreV1().Pods(p.workers).List(context.WithoutCancel(t.Context()), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=worker"})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// log is what a Pod printed so far.
func (p *plant) log(t *testing.T, namespace, pod string) string {
	t.Helper()
	raw, err := p.cluster.Admin.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(context.WithoutCancel(t.Context()))
	if err != nil {
		return fmt.Sprintf("no log of %s: %v", pod, err)
	}
	return string(raw)
}

// describe tells of all Pods and events, for when something went wrong.
func (p *plant) describe(t *testing.T) string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var out strings.Builder
	for _, namespace := range []string{p.workers, p.builds} {
		pods, err := p.cluster.Admin.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, pod := range pods.Items {
			status, err := json.Marshal(pod.Status.ContainerStatuses)
			if err != nil {
				t.Error(err)
			}
			fmt.Fprintf(&out, "Pod %s/%s %s: %s\n%s\n", namespace, pod.Name, pod.Status.Phase, status, p.log(t, namespace, pod.Name))
		}
		events, err := p.cluster.Admin.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, e := range events.Items {
			fmt.Fprintf(&out, "%s %s: %s: %s\n", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
	return out.String()
}

// runImage runs a command in an image, as a Pod that the node pulls it for.
func (p *plant) runImage(t *testing.T, image string, command ...string) (log string) {
	t.Helper()
	log, code := p.cluster.RunPod(t, p.builds, corev1.PodSpec{
		NodeName: kubetest.Node, ImagePullSecrets: []corev1.LocalObjectReference{{Name: pullSecret}},
		Containers: []corev1.Container{{Name: "run", Image: image, Command: command}},
	})
	if code != 0 {
		t.Fatalf("%s in %s ended with %d:\n%s", command, image, code, log)
	}
	return log
}

// digest is what a reference of the registry leads to.
func (r privateRegistry) digest(t *testing.T, image string) string {
	t.Helper()
	ref, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	head, err := remote.Head(ref, r.options...)
	if err != nil {
		t.Fatal(err)
	}
	return head.Digest.String()
}
