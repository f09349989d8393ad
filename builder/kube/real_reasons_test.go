//go:build kube

package kube

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
)

// reason is something that happens to a build on a real API server.
type reason struct {
	config func(*Config)
	plan   func(*builder.Plan)
	// before is done to the namespace, during to the Job once its log says "waiting".
	before func(t *testing.T, c *team)
	during func(ctx context.Context, c *team, job string) error

	kind builder.Kind
	// says is what the error must have in it.
	says string
	// within is how soon it must be there; 0: within ten seconds.
	within time.Duration
}

// check runs one build.
func (r reason) check(t *testing.T, c *team, cfg Config, plan builder.Plan) {
	t.Helper()
	if r.config != nil {
		r.config(&cfg)
	}
	if r.plan != nil {
		r.plan(&plan)
	}
	if r.before != nil {
		r.before(t, c)
	}
	if r.within == 0 {
		r.within = 10 * time.Second
	}
	e := c.engine(t, cfg)
	logs := &waitingLog{ready: make(chan struct{})}
	failed := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := e.Run(t.Context(), plan, logs)
		failed <- err
	}()
	if r.during != nil {
		select {
		case <-logs.ready:
		case err := <-failed:
			t.Fatalf("it ended before it ran: %v\n%s", err, logs.text.String())
		}
		jobs := e.objects.jobsOf(plan.BuildID)
		if len(jobs) != 1 {
			t.Fatalf("%d Jobs, want one", len(jobs))
		}
		began = time.Now()
		if err := r.during(t.Context(), c, jobs[0].Name); err != nil {
			t.Fatal(err)
		}
	}
	err := <-failed
	took := time.Since(began).Round(10 * time.Millisecond)
	if builder.KindOf(err) != r.kind || err == nil || !strings.Contains(err.Error(), r.says) {
		t.Errorf("got %s: %v\nwant %s with %q; log:\n%s", builder.KindOf(err), err, r.kind, r.says, logs.text.String())
	}
	if took > r.within {
		t.Errorf("it took %s, want at most %s", took, r.within)
	}
	t.Logf("figures: %s after %s: %v", builder.KindOf(err), took, err)
	if left := c.left(cfg); len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

// waitingLog is ready once the build's command runs. It is read after the run.
type waitingLog struct {
	text  strings.Builder
	ready chan struct{}
}

// Write implements io.Writer.
func (w *waitingLog) Write(p []byte) (int, error) {
	if string(p) == "waiting\n" {
		close(w.ready)
	}
	return w.text.Write(p)
}

const waits = "RUN echo waiting; sleep 600"

func TestReasonsOfARealAPIServer(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	newScriptedKubelet(t, c, "reasons")
	for name, r := range map[string]reason{
		"node selector of the function": {
			plan: func(p *builder.Plan) { p.Scheduling.NodeSelector = map[string]string{"pool": "none"} },
			kind: builder.KindInvalidRequest, says: "Unschedulable: 0/",
		},
		"node selector of the installation": {
			config: func(c *Config) { c.NodeSelector = map[string]string{"pool": "none"} },
			kind:   builder.KindUnavailable, says: "Unschedulable: 0/",
		},
		"quota of Pods": {
			before: refusePods, kind: builder.KindUnavailable, says: "FailedCreate: Error creating: pods",
		},
		"quota of Jobs": {
			before: func(t *testing.T, c *team) { t.Helper(); c.quota(t, "count/jobs.batch") },
			kind:   builder.KindUnavailable, says: "exceeded quota",
		},
		"service account that is not allowed": {
			plan: func(p *builder.Plan) { p.Scheduling.ServiceAccount = "admin" },
			kind: builder.KindInvalidRequest, says: `builds may not use "admin"`,
		},
		"service account that does not exist": {
			config: func(c *Config) { c.ServiceAccounts = []string{"nobody"} },
			plan:   func(p *builder.Plan) { p.Scheduling.ServiceAccount = "nobody" },
			kind:   builder.KindInvalidRequest, says: `serviceaccount "nobody" not found`,
		},
		"priority class that does not exist": {
			plan: func(p *builder.Plan) { p.Scheduling.PriorityClass = "urgent" },
			kind: builder.KindInvalidRequest, says: "no PriorityClass with name urgent was found",
		},
		"limit of the plan": {
			plan: func(p *builder.Plan) { p.Limits.Timeout = 5 * time.Second },
			kind: builder.KindTimeout, says: "5s",
		},
		"deadline of the Job": {
			during: func(ctx context.Context, c *team, job string) error {
				_, err := c.Admin.BatchV1().Jobs(c.Namespace).Patch(ctx, job, types.MergePatchType, []byte(`{"spec":{"activeDeadlineSeconds":5}}`), metav1.PatchOptions{})
				return err
			},
			kind: builder.KindTimeout, says: "DeadlineExceeded",
		},
		"deleted Job": {
			during: func(ctx context.Context, c *team, job string) error {
				return c.Admin.BatchV1().Jobs(c.Namespace).Delete(ctx, job, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
			},
			kind: builder.KindUnavailable, says: "somebody",
		},
		"deleted Pod": {
			during: func(ctx context.Context, c *team, job string) error {
				return c.onPods(ctx, job, func(pod string) error {
					return c.Admin.CoreV1().Pods(c.Namespace).Delete(ctx, pod, metav1.DeleteOptions{})
				})
			},
			kind: builder.KindUnavailable, says: "Pod",
		},
		"drained node": {
			during: func(ctx context.Context, c *team, job string) error {
				return c.onPods(ctx, job, func(pod string) error {
					return c.Admin.PolicyV1().Evictions(c.Namespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: c.Namespace}})
				})
			},
			kind: builder.KindUnavailable, says: "EvictionByEvictionAPI",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			team := newTeam(t, c, nil)
			plan := enginetest.NewPlan(builder.Image{}, enginetest.NewRegistry(t).Host+"/team/image", t.Name(), waits)
			r.check(t, team, team.config("reasons"), plan)
		})
	}
}

// onPods does something to every Pod of a Job.
func (c *team) onPods(ctx context.Context, job string, do func(pod string) error) error {
	pods, err := c.Admin.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=" + job})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if err := do(pod.Name); err != nil {
			return err
		}
	}
	return nil
}

// refusePods sets the namespace's quota of Pods to zero.
func refusePods(t *testing.T, c *team) {
	t.Helper()
	c.quota(t, corev1.ResourcePods)
}

// quota sets the namespace's quota of a resource to zero.
func (c *team) quota(t *testing.T, name corev1.ResourceName) {
	t.Helper()
	quotas := c.Admin.CoreV1().ResourceQuotas(c.Namespace)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "none"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{name: resource.MustParse("0")},
	}}
	if _, err := quotas.Create(t.Context(), quota, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the quota to hold", func() bool {
		got, err := quotas.Get(t.Context(), "none", metav1.GetOptions{})
		return err == nil && len(got.Status.Hard) > 0
	})
}
