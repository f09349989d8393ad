//go:build kube

package kube

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kiln/builder/kube/kubetest"
)

// team is a namespace of a real cluster, with a worker in it.
type team struct {
	*kubetest.Team
	// worker is the connection of the service account.
	worker Client
}

// newTeam makes a namespace; nil is the Role of the manifests.
func newTeam(t *testing.T, c *kubetest.Cluster, role *rbacv1.Role) *team {
	t.Helper()
	if role == nil {
		role = kubetest.Role(t)
	}
	made := c.NewTeam(t, role)
	worker, err := Connect(ClientConfig{REST: made.Worker})
	if err != nil {
		t.Fatal(err)
	}
	return &team{Team: made, worker: worker}
}

// config is for small builds on the node of that name. What holds one up may do so for
// seconds only.
func (c *team) config(node string) Config {
	return Config{
		Namespace: c.Namespace, Instance: fmt.Sprintf("test-%d", time.Now().UnixNano()),
		ContextImage: kubetest.ContextImage, ExecutorImage: kubetest.ExecutorImage, PullPolicy: corev1.PullNever,
		NodeSelector: map[string]string{corev1.LabelHostname: node},
		Tolerations:  []corev1.Toleration{{Key: simulated, Operator: corev1.TolerationOpExists}},
		Classes: map[string]corev1.ResourceRequirements{DefaultClass: {
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
		}},
		Waits: Waits{Refused: 2 * time.Second, Unschedulable: 2 * time.Second, Image: 5 * time.Second, Container: 2 * time.Second, Settle: 3 * time.Second},
	}
}

// engine returns an Engine that has the worker's Role.
func (c *team) engine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := New(t.Context(), c.worker, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// left names the objects of an installation that stay.
func (c *team) left(cfg Config) []string { return c.leftWithin(cfg, 20*time.Second) }

func (c *team) leftWithin(cfg Config, limit time.Duration) []string {
	opts := metav1.ListOptions{LabelSelector: labelInstance + "=" + cfg.Instance}
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var names []string
		jobs, jobsErr := c.Admin.BatchV1().Jobs(c.Namespace).List(context.Background(), opts)
		pods, podsErr := c.Admin.CoreV1().Pods(c.Namespace).List(context.Background(), opts)
		secrets, secretsErr := c.Admin.CoreV1().Secrets(c.Namespace).List(context.Background(), opts)
		if jobsErr != nil || podsErr != nil || secretsErr != nil {
			return []string{fmt.Sprint("unknown: ", jobsErr, podsErr, secretsErr)}
		}
		for _, o := range jobs.Items {
			names = append(names, "job "+o.Name)
		}
		for _, o := range pods.Items {
			names = append(names, "pod "+o.Name)
		}
		for _, o := range secrets.Items {
			names = append(names, "secret "+o.Name)
		}
		if len(names) == 0 || time.Since(began) > limit {
			return names
		}
	}
}
