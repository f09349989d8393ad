package kube

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

func TestPermissionsAreThoseOfTheRole(t *testing.T) {
	t.Parallel()
	granted, asked := map[string]bool{}, map[string]bool{}
	for _, rule := range readRole(t).Rules {
		for _, name := range rule.Resources {
			for _, verb := range rule.Verbs {
				parts := strings.SplitN(name+"/", "/", 3)
				granted[permission{verb, rule.APIGroups[0], parts[0], parts[1]}.String()] = true
			}
		}
	}
	for _, p := range permissions() {
		asked[p.String()] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(granted)), slices.Sorted(maps.Keys(asked))); diff != "" {
		t.Errorf("permissions (-Role +Check):\n%s", diff)
	}
}

// reviewed returns a client of which everything but the named calls is allowed. It
// makes no object in a dry run.
func reviewed(denied []string, objects ...runtime.Object) *fake.Clientset {
	client := fake.NewSimpleClientset(objects...)
	client.PrependReactor("create", "selfsubjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		review := a.(k8stesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		r := review.Spec.ResourceAttributes
		review.Status.Allowed = r.Namespace == "builds" && !slices.Contains(denied, permission{r.Verb, r.Group, r.Resource, r.Subresource}.String())
		return true, review, nil
	})
	return client
}

// answering lets the API server answer the creation of Jobs with err.
func answering(client *fake.Clientset, err error) *fake.Clientset {
	client.PrependReactor("create", "jobs", func(a k8stesting.Action) (bool, runtime.Object, error) {
		create := a.(k8stesting.CreateActionImpl)
		if !slices.Equal(create.CreateOptions.DryRun, []string{metav1.DryRunAll}) {
			return true, nil, errors.New("not a dry run")
		}
		return true, create.Object, err
	})
	return client
}

func quotaOf(hard, used string) *corev1.ResourceQuota {
	list := func(text string) corev1.ResourceList {
		out := corev1.ResourceList{}
		for field := range strings.FieldsSeq(text) {
			name, value, _ := strings.Cut(field, "=")
			out[corev1.ResourceName(name)] = resource.MustParse(value)
		}
		return out
	}
	return &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "team", Namespace: "builds"}, Status: corev1.ResourceQuotaStatus{Hard: list(hard), Used: list(used)},
	}
}

func TestCheckSaysWhatIsMissingAndHowToGetIt(t *testing.T) {
	t.Parallel()
	jobs := batchv1.Resource("jobs")
	for name, tc := range map[string]struct {
		client *fake.Clientset
		// subject, part of its detail and of its fix
		subject, detail, fix string
	}{
		"all there":          {answering(reviewed(nil), nil), "permissions", "all 11 in namespace builds", ""},
		"job taken":          {answering(reviewed(nil), nil), "Job", "takes it", ""},
		"no quota":           {answering(reviewed(nil), nil), "quota", "has none", ""},
		"denied":             {answering(reviewed([]string{"create secrets", "get pods/log"}), nil), "permissions", "get pods/log, create secrets", "role.yaml"},
		"no namespace":       {answering(reviewed(nil), apierrors.NewNotFound(corev1.Resource("namespaces"), "builds")), "Job", `"builds" not found`, "kubectl create namespace builds"},
		"refused":            {answering(reviewed(nil), apierrors.NewForbidden(jobs, "x", errors.New("exceeded quota"))), "Job", "exceeded quota", "kube.namespace"},
		"invalid":            {answering(reviewed(nil), apierrors.NewBadRequest("no such class")), "Job", "no such class", "kube.*"},
		"quotas not allowed": {answering(reviewed([]string{"list resourcequotas"}), nil), "quota", "not looked at", ""},
		"room":               {answering(reviewed(nil, quotaOf("pods=2 requests.cpu=1 limits.memory=5Gi services=0", "pods=1 requests.cpu=500m")), nil), "quota team", "leaves room", ""},
		"no room":            {answering(reviewed(nil, quotaOf("limits.memory=5Gi pods=2", "limits.memory=2Gi pods=2")), nil), "quota team", "4Gi of limits.memory, and 3Gi is left; a build takes 1 of pods, and 0", "kube.classes"},
		"says nothing":       {answering(reviewed(nil, quotaOf("limits.cpu=5", "")), nil), "quota team", "limits.cpu", "kube.classes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			findings, err := Check(t.Context(), tc.client, testConfig())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(findings, func(f Finding) bool { return f.Subject == tc.subject })
			if i < 0 {
				t.Fatalf("findings = %+v", findings)
			}
			if f := findings[i]; !strings.Contains(f.Detail, tc.detail) || !strings.Contains(f.Fix, tc.fix) || (tc.fix == "") != (f.Fix == "") {
				t.Errorf("finding = %+v, want %q and %q", f, tc.detail, tc.fix)
			}
		})
	}
}

func TestCheckMakesNothingWhenJobsAreNotAllowed(t *testing.T) {
	t.Parallel()
	client := reviewed([]string{"create jobs.batch"})
	findings, err := Check(t.Context(), client, testConfig())
	if err != nil || findings[0].Fix == "" {
		t.Errorf("findings = %+v, %v", findings, err)
	}
	for _, a := range client.Actions() {
		if a.GetVerb() == "create" && a.GetResource().Resource != "selfsubjectaccessreviews" {
			t.Errorf("made %v", a)
		}
	}
}

func TestCheckFailsWithoutAServerOrConfiguration(t *testing.T) {
	t.Parallel()
	client := fake.NewSimpleClientset()
	client.PrependReactor("*", "*", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("connection refused")
	})
	if _, err := Check(t.Context(), client, testConfig()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Check() = %v", err)
	}
	if _, err := Check(t.Context(), client, Config{}); err == nil || !strings.Contains(err.Error(), "namespace") {
		t.Errorf("Check() = %v", err)
	}
}
