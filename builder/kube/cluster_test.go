package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

var (
	jobsGVR    = batchv1.SchemeGroupVersion.WithResource("jobs")
	podsGVR    = corev1.SchemeGroupVersion.WithResource("pods")
	secretsGVR = corev1.SchemeGroupVersion.WithResource("secrets")
)

// script is what a node does with a Job's Pod. ctx ends when the Job is deleted.
type script func(ctx context.Context, p *fakePod)

// testCluster is a fake API server that checks every call against the Role, with a Job
// controller, a garbage collector and a node that plays a script for every Job.
type testCluster struct {
	client *fake.Clientset
	logs   *fakeLogs
	play   script
	ctx    context.Context //nolint:containedctx // the life of the cluster, which no call can be given

	mu   sync.Mutex
	uids int
	ends map[types.UID]func()
	work sync.WaitGroup
}

func newTestCluster(t *testing.T, play script) *testCluster {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &testCluster{
		client: fake.NewSimpleClientset(), logs: &fakeLogs{files: map[string]*logFile{}}, play: play, ctx: ctx,
		ends: map[types.UID]func(){},
	}
	c.client.PrependReactor("create", "jobs", c.createJob)
	c.client.PrependReactor("delete", "jobs", c.deleteJob)
	c.client.PrependReactor("patch", "jobs", c.patchJob)
	role := readRole(t)
	c.client.PrependReactor("*", "*", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if !allows(role, a) {
			return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "", fmt.Errorf("the Role has no %s", callOf(a)))
		}
		return false, nil, nil
	})
	t.Cleanup(func() {
		stop()
		c.work.Wait()
	})
	return c
}

func readRole(t *testing.T) rbacv1.Role {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/manifests/role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var role rbacv1.Role
	if err := yaml.UnmarshalStrict(raw, &role); err != nil {
		t.Fatal(err)
	}
	return role
}

// callOf names a call as rules do: "get pods/log".
func callOf(a k8stesting.Action) string {
	resource := a.GetResource().Resource
	if sub := a.GetSubresource(); sub != "" {
		resource += "/" + sub
	}
	return a.GetVerb() + " " + resource
}

func allows(role rbacv1.Role, a k8stesting.Action) bool {
	verb, resource, _ := strings.Cut(callOf(a), " ")
	return slices.ContainsFunc(role.Rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.APIGroups, a.GetResource().Group) && slices.Contains(r.Resources, resource) && slices.Contains(r.Verbs, verb)
	})
}

// createJob does what the server does before it stores a Job, and starts the script.
func (c *testCluster) createJob(a k8stesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(k8stesting.CreateAction)
	if !ok {
		return false, nil, nil
	}
	job, ok := create.GetObject().(*batchv1.Job)
	if !ok {
		return false, nil, nil
	}
	if _, err := c.client.Tracker().Get(jobsGVR, job.Namespace, job.Name); err == nil {
		return true, nil, apierrors.NewAlreadyExists(jobsGVR.GroupResource(), job.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uids++
	job.UID, job.CreationTimestamp = types.UID(fmt.Sprint("job-", c.uids)), metav1.Now()
	c.run(job.DeepCopy())
	return false, nil, nil
}

// run plays the script for a Job that is about to be stored.
func (c *testCluster) run(job *batchv1.Job) {
	ctx, cancel := context.WithCancel(c.ctx)
	p := &fakePod{cluster: c, job: job}
	done := make(chan struct{})
	c.ends[job.UID] = func() {
		cancel()
		<-done
		p.remove()
	}
	c.work.Go(func() {
		defer close(done)
		c.play(ctx, p)
	})
}

// deleteJob deletes as the propagation policy asks: in the foreground the Job stays
// until its Pod has ended.
func (c *testCluster) deleteJob(a k8stesting.Action) (bool, runtime.Object, error) {
	del, ok := a.(k8stesting.DeleteAction)
	if !ok {
		return false, nil, nil
	}
	job := c.job(del.GetNamespace(), del.GetName())
	if job == nil {
		return false, nil, nil
	}
	opts := del.GetDeleteOptions()
	if p := opts.Preconditions; p != nil && p.UID != nil && *p.UID != job.UID {
		return true, nil, apierrors.NewConflict(jobsGVR.GroupResource(), job.Name, fmt.Errorf("uid is %s", job.UID))
	}
	foreground := opts.PropagationPolicy != nil && *opts.PropagationPolicy == metav1.DeletePropagationForeground
	c.mu.Lock()
	end := c.ends[job.UID]
	delete(c.ends, job.UID)
	c.mu.Unlock()
	if foreground && job.DeletionTimestamp == nil {
		job = job.DeepCopy()
		job.DeletionTimestamp = new(metav1.Now())
		if err := c.client.Tracker().Update(jobsGVR, job, job.Namespace); err != nil {
			return true, nil, err
		}
	}
	c.work.Go(func() {
		if end != nil {
			end()
		}
		if foreground {
			_ = c.client.Tracker().Delete(jobsGVR, job.Namespace, job.Name)
		}
		c.collect(job)
	})
	return foreground, nil, nil
}

// patchJob ends a Job's Pod when its deadline has passed.
func (c *testCluster) patchJob(a k8stesting.Action) (bool, runtime.Object, error) {
	patch, ok := a.(k8stesting.PatchAction)
	if !ok {
		return false, nil, nil
	}
	job := c.job(patch.GetNamespace(), patch.GetName())
	if job == nil {
		return true, nil, apierrors.NewNotFound(jobsGVR.GroupResource(), patch.GetName())
	}
	job = job.DeepCopy()
	if err := json.Unmarshal(patch.GetPatch(), job); err != nil {
		return true, nil, err
	}
	if err := c.client.Tracker().Update(jobsGVR, job, job.Namespace); err != nil {
		return true, nil, err
	}
	c.mu.Lock()
	end := c.ends[job.UID]
	delete(c.ends, job.UID)
	c.mu.Unlock()
	if end != nil && *job.Spec.ActiveDeadlineSeconds == 1 {
		c.work.Go(func() {
			end()
			(&fakePod{cluster: c, job: job}).jobEnds(batchv1.JobFailed, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
		})
	}
	return true, job, nil
}

// collect removes the Job's Secrets.
func (c *testCluster) collect(job *batchv1.Job) {
	list, err := c.client.Tracker().List(secretsGVR, corev1.SchemeGroupVersion.WithKind("Secret"), job.Namespace)
	if err != nil {
		return
	}
	for _, secret := range list.(*corev1.SecretList).Items { //nolint:forcetypeassert // a list of Secrets
		if owner := metav1.GetControllerOf(&secret); owner != nil && owner.UID == job.UID {
			_ = c.client.Tracker().Delete(secretsGVR, secret.Namespace, secret.Name)
		}
	}
}

func (c *testCluster) job(namespace, name string) *batchv1.Job {
	object, err := c.client.Tracker().Get(jobsGVR, namespace, name)
	if err != nil {
		return nil
	}
	job, _ := object.(*batchv1.Job)
	return job
}

// left names the objects that there are, once deletions have settled.
func (c *testCluster) left(t *testing.T) []string {
	t.Helper()
	c.mu.Lock()
	idle := len(c.ends) == 0
	c.mu.Unlock()
	if idle {
		c.work.Wait()
	}
	var names []string
	for gvr, kind := range map[schema.GroupVersionResource]schema.GroupVersionKind{
		jobsGVR: batchv1.SchemeGroupVersion.WithKind("Job"), podsGVR: corev1.SchemeGroupVersion.WithKind("Pod"),
		secretsGVR: corev1.SchemeGroupVersion.WithKind("Secret"),
	} {
		list, err := c.client.Tracker().List(gvr, kind, "")
		if err != nil {
			t.Fatal(err)
		}
		switch list := list.(type) {
		case *batchv1.JobList:
			for _, o := range list.Items {
				names = append(names, "job "+o.Name)
			}
		case *corev1.PodList:
			for _, o := range list.Items {
				names = append(names, "pod "+o.Name)
			}
		case *corev1.SecretList:
			for _, o := range list.Items {
				names = append(names, "secret "+o.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// calls counts the calls that were made, by name.
func (c *testCluster) calls() map[string]int {
	counts := map[string]int{}
	for _, a := range c.client.Actions() {
		counts[callOf(a)]++
	}
	return counts
}

// engine returns an Engine on the cluster.
func (c *testCluster) engine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := newEngine(t.Context(), c.client, c.logs, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}
