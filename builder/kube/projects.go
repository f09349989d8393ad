package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"

	"kiln/builder"
)

// projectSecretPrefix is what the names of MLRun's Secrets of projects begin with, see
// secret_stores.kubernetes.project_secret_name in its configuration.
const projectSecretPrefix = "mlrun-project-secrets-" //nolint:gosec // a name, not a secret

// maxProjectSecret is how long a value may be: builds see it as an environment variable.
const maxProjectSecret = 100 << 10

// ProjectSecrets reads the secrets of projects from the Secrets in which MLRun's server
// keeps them, mlrun-project-secrets-PROJECT, whenever a build asks. It implements
// builder.SecretStore and is safe for concurrent use.
type ProjectSecrets struct {
	client    kubernetes.Interface
	namespace string
	only      []string
	retryFor  time.Duration
}

// NewProjectSecrets returns those of the namespace of MLRun's server: of the projects
// that are named, or of all if none is. It makes no call yet; the client needs the
// permission to get these Secrets.
func NewProjectSecrets(client kubernetes.Interface, namespace string, only ...string) ProjectSecrets {
	return ProjectSecrets{client: client, namespace: namespace, only: only, retryFor: Config{}.withDefaults().RetryFor}
}

// Secrets implements builder.SecretStore. A project without a Secret has no secrets, nor
// has one that is not named where some are. A name that no Secret can have is an error of KindInvalidRequest, every other error is
// of KindUnavailable.
func (s ProjectSecrets) Secrets(ctx context.Context, project string) (map[string]string, error) {
	op := fmt.Sprintf("reading the secrets of project %.80q", project)
	if len(s.only) > 0 && !slices.Contains(s.only, project) {
		return map[string]string{}, nil
	}
	name := projectSecretPrefix + project
	if faults := validation.IsDNS1123Subdomain(name); len(faults) > 0 {
		return nil, builder.Errorf(builder.KindInvalidRequest, op, "no Secret can be called %.100q: %s", name, faults[0])
	}
	secret, err := retry(ctx, s.retryFor, func() (*corev1.Secret, error) {
		return s.client.CoreV1().Secrets(s.namespace).Get(ctx, name, metav1.GetOptions{})
	})
	switch {
	case apierrors.IsNotFound(err):
		return map[string]string{}, nil
	case apierrors.IsForbidden(err):
		return nil, unavailable(op, fmt.Errorf("the worker may not get the Secret %s/%s (the chart's projects.lookup): %w", s.namespace, name, err))
	case err != nil:
		return nil, apiError(ctx, op, err)
	}
	found := make(map[string]string, len(secret.Data))
	for key, value := range secret.Data {
		if len(value) > maxProjectSecret {
			return nil, unavailable(op, fmt.Errorf("secret %q is longer than %d KiB", key, maxProjectSecret>>10))
		}
		found[key] = string(value)
	}
	return found, nil
}
