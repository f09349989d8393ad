//go:build kube

package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kiln/builder"
	"kiln/builder/kube/kubetest"
)

// TestAWorkerReadsSecretsOfItsProjectsOnly has the Role that the chart makes for
// projects.lookup with names.
func TestAWorkerReadsSecretsOfItsProjectsOnly(t *testing.T) { //nolint:paralleltest // like all tests of the real cluster
	c := newTeam(t, kubetest.Real(t), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "projects"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"},
		ResourceNames: []string{projectSecretPrefix + "demo", projectSecretPrefix + "empty"},
	}}})
	for _, project := range []string{"demo", "vision"} {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: projectSecretPrefix + project}, Data: map[string][]byte{"TOKEN": []byte("of " + project)}}
		if _, err := c.Admin.CoreV1().Secrets(c.Namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	store := NewProjectSecrets(c.worker, c.Namespace)
	for project, want := range map[string]map[string]string{"demo": {"TOKEN": "of demo"}, "empty": {}} {
		got, err := store.Secrets(t.Context(), project)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", project, diff)
		}
	}
	if _, err := store.Secrets(t.Context(), "vision"); builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(err.Error(), "projects.lookup") {
		t.Errorf("a project that is not named: %v", err)
	}
	if diff := cmp.Diff([]string{"get secrets"}, c.Calls.Names()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}
