package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// Finding is one thing that Check looked at.
type Finding struct {
	// Subject is what was looked at, Detail what was found.
	Subject, Detail string
	// Fix is what to do about it; empty: nothing has to be done.
	Fix string
}

// permission is a call that the engine makes.
type permission struct{ verb, group, resource, subresource string }

// String is the form of `kubectl auth can-i`.
func (p permission) String() string {
	name := p.resource
	if p.group != "" {
		name += "." + p.group
	}
	if p.subresource != "" {
		name += "/" + p.subresource
	}
	return p.verb + " " + name
}

// permissions are those of the Role; a test holds both together.
func permissions() []permission {
	return []permission{
		{"create", "batch", "jobs", ""},
		{"delete", "batch", "jobs", ""},
		{"get", "batch", "jobs", ""},
		{"list", "batch", "jobs", ""},
		{"patch", "batch", "jobs", ""},
		{"watch", "batch", "jobs", ""},
		{"list", "", "pods", ""},
		{"watch", "", "pods", ""},
		{"get", "", "pods", "log"},
		{"create", "", "secrets", ""},
		{"list", "", "events", ""},
	}
}

// Check looks whether the cluster would run builds: what this client may do, whether
// the API server takes a Job (as a dry run: nothing is made), and whether quotas leave
// room. An error means that the configuration is wrong or that the API server was not
// reached.
func Check(ctx context.Context, client kubernetes.Interface, cfg Config) ([]Finding, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("kubernetes configuration: %w", err)
	}
	c := checker{client: client, cfg: cfg}
	var denied []string
	for _, p := range permissions() {
		ok, err := c.may(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("ask for permissions: %w", err)
		}
		if !ok {
			denied = append(denied, p.String())
		}
	}
	findings := []Finding{c.permissions(denied)}
	if !slices.Contains(denied, permissions()[0].String()) {
		findings = append(findings, c.job(ctx))
	}
	return append(findings, c.quotas(ctx)...), nil
}

type checker struct {
	client kubernetes.Interface
	cfg    Config
}

func (c checker) may(ctx context.Context, p permission) (bool, error) {
	review, err := c.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: c.cfg.Namespace, Verb: p.verb, Group: p.group, Resource: p.resource, Subresource: p.subresource,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

func (c checker) permissions(denied []string) Finding {
	f := Finding{Subject: "permissions", Detail: fmt.Sprintf("all %d in namespace %s", len(permissions()), c.cfg.Namespace)}
	if len(denied) > 0 {
		f.Detail = fmt.Sprintf("not allowed in namespace %s: %s", c.cfg.Namespace, strings.Join(denied, ", "))
		f.Fix = "bind the Role in deploy/manifests/role.yaml to this user in that namespace (the chart's rbac.create)"
	}
	return f
}

// job asks the API server to check a Job as it will be made.
func (c checker) job(ctx context.Context) Finding {
	f := Finding{Subject: "Job", Detail: "the API server takes it (dry run)"}
	id := strings.Repeat("0", 64)
	plan := builder.Plan{
		BuildID: id, Destination: "registry.invalid/kiln:" + id, Dockerfile: "FROM scratch\n", Platform: "linux/amd64",
		Project: "default", Function: "doctor", Tag: "latest", Executor: builder.DefaultExecutor(),
	}
	var job *batchv1.Job
	to, err := newReach(kaniko.Options{})
	if err == nil {
		job, err = newJob(plan, c.cfg, to, jobName(plan, c.cfg), "")
	}
	if err == nil {
		_, err = c.client.BatchV1().Jobs(c.cfg.Namespace).Create(ctx, job, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	if err == nil {
		return f
	}
	f.Detail = err.Error()
	switch {
	case apierrors.IsNotFound(err):
		f.Fix = fmt.Sprintf("make the namespace: kubectl create namespace %s (the chart's builds.createNamespace), or correct kube.namespace", c.cfg.Namespace)
	case apierrors.IsForbidden(err):
		f.Fix = "a quota or an admission policy refuses builds: change it, or have builds in another namespace (kube.namespace)"
	default:
		f.Fix = "correct the kube.* settings that it names"
	}
	return f
}

// quotas compares what is left of each ResourceQuota with what one build takes.
func (c checker) quotas(ctx context.Context) []Finding {
	const subject = "quota"
	list := permission{verb: "list", resource: "resourcequotas"}
	if ok, err := c.may(ctx, list); err != nil || !ok {
		return []Finding{{Subject: subject, Detail: "not looked at: not allowed to " + list.String() + ", which no build needs"}}
	}
	found, err := c.client.CoreV1().ResourceQuotas(c.cfg.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return []Finding{{Subject: subject, Detail: "not looked at: " + err.Error()}}
	}
	var findings []Finding
	for _, quota := range found.Items {
		findings = append(findings, c.quota(quota))
	}
	if len(findings) == 0 {
		findings = []Finding{{Subject: subject, Detail: "namespace " + c.cfg.Namespace + " has none"}}
	}
	return findings
}

func (c checker) quota(quota corev1.ResourceQuota) Finding {
	one := c.demand()
	var short []string
	for _, name := range slices.Sorted(maps.Keys(quota.Status.Hard)) {
		need, counts := one[name]
		if !counts {
			continue
		}
		left := quota.Status.Hard[name]
		left.Sub(quota.Status.Used[name])
		switch {
		case need == nil:
			short = append(short, fmt.Sprintf("it demands that builds say their %s, and resource class %s does not", name, DefaultClass))
		case need.Cmp(left) > 0:
			short = append(short, fmt.Sprintf("a build takes %s of %s, and %s is left", need, name, &left))
		}
	}
	f := Finding{Subject: "quota " + quota.Name, Detail: "leaves room for a build of resource class " + DefaultClass}
	if len(short) > 0 {
		f.Detail = strings.Join(short, "; ")
		f.Fix = "raise the quota, or change the resource class with kube.classes; builds wait and fail until then"
	}
	return f
}

// demand is what one build takes, by the names that quotas use; nil is what a build
// does not say.
func (c checker) demand() map[corev1.ResourceName]*resource.Quantity {
	r := c.cfg.resources(builder.Plan{})
	one := resource.NewQuantity(1, resource.DecimalSI)
	all := map[corev1.ResourceName]*resource.Quantity{
		corev1.ResourcePods: one, "count/pods": one, "count/jobs.batch": one, corev1.ResourceSecrets: one, "count/secrets": one,
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		request, hasRequest := r.Requests[name]
		limit, hasLimit := r.Limits[name]
		if !hasRequest {
			// Kubernetes takes the limit for the request.
			request, hasRequest = limit, hasLimit
		}
		all[name], all["requests."+name], all["limits."+name] = nil, nil, nil
		if hasRequest {
			all[name], all["requests."+name] = &request, &request
		}
		if hasLimit {
			all["limits."+name] = &limit
		}
	}
	return all
}
