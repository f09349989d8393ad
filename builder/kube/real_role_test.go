//go:build kube

package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
	runs "kiln/builder/run"
	"kiln/builder/run/runtest"
)

// everyCall runs builds that need everything the Role grants, and returns what did not
// go as it should.
func everyCall(t *testing.T, c *team, node string) error {
	t.Helper()
	cfg := c.config(node)
	cfg.RetryFor, cfg.Grace = time.Second, 2*time.Second
	// Without a list there is no engine, however long one waits.
	starting, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	e, err := New(starting, c.worker, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	registry := enginetest.NewRegistry(t)
	plan := func(instruction string) builder.Plan {
		plan := enginetest.NewPlan(builder.Image{}, registry.Host+"/team/image", t.Name()+instruction, instruction)
		plan.Limits.Timeout = 20 * time.Second
		return plan
	}
	// A build that is left and joined, with its log, and collected.
	left := plan("RUN echo line 1; sleep 600")
	if said, err := leaveAt(t, e, left, "waiting\n", builder.ErrShutdown); builder.KindOf(err) != builder.KindInterrupted {
		return errors.Join(errors.New("a build was not left"), err)
	} else if !said {
		return errors.New("a build has no log")
	}
	if said, err := leaveAt(t, e, left, "Joined", context.Canceled); !said || builder.KindOf(err) != builder.KindCanceled {
		return errors.Join(errors.New("a build was not joined"), err)
	}
	if _, err := e.Run(t.Context(), plan("RUN true"), io.Discard); err != nil {
		return err
	}
	if left := c.leftWithin(cfg, 5*time.Second); len(left) > 0 {
		return errors.New("left behind: " + strings.Join(left, ", "))
	}
	if err := endedRun(t, c, cfg); err != nil {
		return err
	}
	// What cannot be watched is listed again and again.
	for _, list := range []string{"list jobs", "list pods"} {
		if n := c.Calls.Counts()[list]; n > 2 {
			return fmt.Errorf("%d calls of %s, want one at most for builds and one for runs", n, list)
		}
	}
	// One that the cluster refuses to make a Pod for.
	refusePods(t, c)
	if _, err := e.Run(t.Context(), plan("RUN refused"), io.Discard); err == nil || !strings.Contains(err.Error(), "exceeded quota") {
		return errors.Join(errors.New("the reason is not named"), err)
	}
	return nil
}

// endedRun runs a function until it is canceled, and returns what did not go as it should.
func endedRun(t *testing.T, c *team, cfg Config) error {
	t.Helper()
	starting, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	r, err := NewRunner(starting, c.worker, RunnerConfig{Config: cfg, Entrypoints: entrypoints{}})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	plan := runtest.NewPlan(probeImage, t.Name(), "wait")
	if _, err := r.Run(ctx, plan, runs.Watch{Started: func(time.Time) { cancel() }}); builder.KindOf(err) != builder.KindCanceled {
		return errors.Join(errors.New("a run was not canceled"), err)
	}
	// Who asks later learns how it ended, since that is noted at the Job.
	again, giveUp := context.WithTimeout(t.Context(), 10*time.Second)
	defer giveUp()
	if _, err := r.Run(again, plan, runs.Watch{}); builder.KindOf(err) != builder.KindCanceled {
		return errors.Join(errors.New("it is not known that a run was canceled"), err)
	}
	return r.Forget(t.Context(), plan.RunID, plan.Attempt)
}

// leaveAt runs the plan until its log says something, for 10 seconds at most, and then
// cancels it with the cause.
func leaveAt(t *testing.T, e *Engine, plan builder.Plan, text string, cause error) (said bool, err error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer time.AfterFunc(10*time.Second, func() { cancel(cause) }).Stop()
	log := &heard{text: text, then: func() { cancel(cause) }}
	_, err = e.Run(ctx, plan, log)
	return strings.Contains(log.all.String(), text), err
}

// heard calls then when text was written.
type heard struct {
	all  bytes.Buffer
	text string
	then func()
}

// Write implements io.Writer.
func (h *heard) Write(p []byte) (int, error) {
	h.all.Write(p)
	if strings.Contains(h.all.String(), h.text) {
		h.then()
	}
	return len(p), nil
}

// onOlderServer makes the server refuse to list by way of a watch, as those before
// Kubernetes 1.34 do: clients then make plain lists.
func (c *team) onOlderServer(t *testing.T) *team {
	t.Helper()
	cfg := rest.CopyConfig(c.Worker)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return olderServer{next} })
	worker, err := Connect(ClientConfig{REST: cfg})
	if err != nil {
		t.Fatal(err)
	}
	c.worker = worker
	return c
}

type olderServer struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (o olderServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if !r.URL.Query().Has("sendInitialEvents") {
		return o.next.RoundTrip(r)
	}
	status, err := json.Marshal(apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "ListOptions"}, "", field.ErrorList{
		field.Forbidden(field.NewPath("sendInitialEvents"), "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
	}).Status())
	return &http.Response{
		StatusCode: http.StatusUnprocessableEntity, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(status)), Request: r,
	}, err
}

// roleWithout takes one verb of one resource away, and has a rule for every other.
func roleWithout(role *rbacv1.Role, verb, what string) *rbacv1.Role {
	var rules []rbacv1.PolicyRule
	for _, rule := range role.Rules {
		for _, r := range rule.Resources {
			for _, v := range rule.Verbs {
				if v != verb || r != what {
					rules = append(rules, rbacv1.PolicyRule{APIGroups: rule.APIGroups, Resources: []string{r}, Verbs: []string{v}})
				}
			}
		}
	}
	role.Rules = rules
	return role
}

func TestRoleIsEnoughAndNothingOfItIsToSpare(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	newScriptedKubelet(t, c, "roles")
	whole := newTeam(t, c, nil)
	if err := everyCall(t, whole, "roles"); err != nil {
		t.Fatalf("with the whole Role: %v", err)
	}
	older := newTeam(t, c, nil).onOlderServer(t)
	if err := everyCall(t, older, "roles"); err != nil {
		t.Fatalf("with the whole Role on an older server: %v", err)
	}
	made := slices.Compact(slices.Sorted(slices.Values(append(whole.Calls.Names(), older.Calls.Names()...))))
	var granted []string
	for _, rule := range kubetest.Role(t).Rules {
		for _, what := range rule.Resources {
			for _, verb := range rule.Verbs {
				granted = append(granted, verb+" "+what)
			}
		}
	}
	slices.Sort(granted)
	if diff := cmp.Diff(granted, made); diff != "" {
		t.Errorf("calls (-granted +made):\n%s", diff)
	}
	for _, call := range granted {
		t.Run("without "+call, func(t *testing.T) {
			t.Parallel()
			verb, what, _ := strings.Cut(call, " ")
			less := newTeam(t, c, roleWithout(kubetest.Role(t), verb, what))
			if verb == "list" {
				less.onOlderServer(t)
			}
			if err := everyCall(t, less, "roles"); err == nil {
				t.Errorf("everything works without %s", call)
			} else {
				t.Log(err)
			}
		})
	}
}

func TestWorkerIsDeniedWhatItDoesNotNeed(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	team := newTeam(t, c, nil)
	can := func(call, namespace string) bool {
		verb, what, _ := strings.Cut(call, " ")
		what, group, _ := strings.Cut(what, ".")
		what, sub, _ := strings.Cut(what, "/")
		review, err := team.worker.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: verb, Group: group, Resource: what, Subresource: sub,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return review.Status.Allowed
	}
	for _, call := range []string{"create jobs.batch", "watch pods", "get pods/log", "create secrets"} {
		if !can(call, team.Namespace) {
			t.Errorf("%s is denied in its own namespace", call)
		}
		if can(call, "default") || can(call, "") {
			t.Errorf("%s is allowed in other namespaces", call)
		}
	}
	for _, call := range []string{
		"get secrets", "list secrets", "watch secrets", "update secrets", "delete secrets", "deletecollection secrets",
		"create pods", "update pods", "patch pods", "delete pods", "create pods/exec", "create pods/attach", "create pods/portforward",
		"create pods/eviction", "patch pods/ephemeralcontainers", "update jobs.batch", "patch jobs.batch/status",
		"deletecollection jobs.batch", "create cronjobs.batch", "create deployments.apps", "get configmaps", "create configmaps", "create events",
		"get serviceaccounts", "create serviceaccounts/token", "create roles.rbac.authorization.k8s.io",
		"create rolebindings.rbac.authorization.k8s.io", "get resourcequotas", "list nodes", "get nodes/proxy", "list namespaces",
		"impersonate serviceaccounts",
	} {
		if can(call, team.Namespace) {
			t.Errorf("%s is allowed", call)
		}
	}
}

// warnings remembers what an API server warns of.
type warnings struct{ said []string }

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.said = append(w.said, text) }

func TestJobsPassTheServersStrictValidation(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	team := newTeam(t, c, nil)
	heard := &warnings{}
	c.REST.WarningHandler = heard
	client := kubetest.Client(t, c.REST)
	for name, cfg := range map[string]Config{"plain": testConfig(), "everything": everyOption()} {
		cfg.Namespace = team.Namespace
		plan, to := testPlan(), plainReach(t)
		if name == "everything" {
			plan, to = everything(), everyReach(t)
		}
		job, err := newJob(plan, cfg, to, "secret", "")
		if err != nil {
			t.Fatal(err)
		}
		opts := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
		made, err := client.BatchV1().Jobs(team.Namespace).Create(t.Context(), job, opts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		secret, err := newSecret(plan, cfg, to, made)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Secrets(team.Namespace).Create(t.Context(), secret, opts); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(heard.said) > 0 {
		t.Errorf("the server warns: %q", heard.said)
	}
}
