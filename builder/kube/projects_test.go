package kube

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"kiln/builder"
)

var _ builder.SecretStore = ProjectSecrets{}

func projectSecret(namespace, name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
}

func TestSecretsOfAProjectAreThoseOfItsSecretNow(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset(
		projectSecret("mlrun", "mlrun-project-secrets-demo", map[string][]byte{"TOKEN": []byte("one\n"), "mlrun.internal": []byte("x")}),
		projectSecret("mlrun", "mlrun-project-secrets-demo-2", map[string][]byte{"TOKEN": []byte("of another project")}),
		projectSecret("elsewhere", "mlrun-project-secrets-vision", map[string][]byte{"TOKEN": []byte("of another namespace")}),
		projectSecret("mlrun", "mlrun-db", map[string][]byte{"password": []byte("hush")}),
	)
	store := NewProjectSecrets(client, "mlrun")
	check := func(project string, want map[string]string) {
		t.Helper()
		got, err := store.Secrets(t.Context(), project)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", project, diff)
		}
	}
	check("demo", map[string]string{"TOKEN": "one\n", "mlrun.internal": "x"})
	check("vision", map[string]string{})
	rotated := projectSecret("mlrun", "mlrun-project-secrets-demo", map[string][]byte{"TOKEN": []byte("two")})
	if _, err := client.CoreV1().Secrets("mlrun").Update(t.Context(), rotated, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	check("demo", map[string]string{"TOKEN": "two"})
	client.ClearActions()
	store = NewProjectSecrets(client, "mlrun", "vision", "other")
	check("demo", map[string]string{})
	if calls := client.Actions(); len(calls) > 0 {
		t.Errorf("calls for a project that is not named: %v", calls)
	}
}

func TestSecretsOfAProjectThatCannotBeReadSayWhy(t *testing.T) {
	t.Parallel()
	const namespace, name = "mlrun", "mlrun-project-secrets-demo"
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), name, errors.New("RBAC"))
	for title, tc := range map[string]struct {
		project string
		fault   error
		kind    builder.Kind
		says    string
	}{
		"name of no Secret": {project: "../mlrun-db", kind: builder.KindInvalidRequest, says: "no Secret can be called"},
		"permission":        {project: "demo", fault: forbidden, kind: builder.KindUnavailable, says: "projects.lookup"},
		"API server":        {project: "demo", fault: apierrors.NewInternalError(errors.New("broken")), kind: builder.KindUnavailable, says: "broken"},
		"long value":        {project: "long", kind: builder.KindUnavailable, says: "longer than 100 KiB"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset(projectSecret(namespace, "mlrun-project-secrets-long", map[string][]byte{"A": bytes.Repeat([]byte("hush"), 26<<10)}))
				if tc.fault != nil {
					client.PrependReactor("get", "secrets", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, tc.fault })
				}
				_, err := NewProjectSecrets(client, namespace).Secrets(t.Context(), tc.project)
				if builder.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hush") {
					t.Errorf("got %v, want %s with %q", err, tc.kind, tc.says)
				}
			})
		})
	}
}
