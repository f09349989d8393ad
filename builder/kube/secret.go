package kube

import (
	"encoding/json"
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kiln/builder"
)

// Keys of a build's Secret. Build arguments and secrets are numbered as in the plan:
// their names may hold what keys may not.
const keyPlan = "plan.json"

func argKey(i int) string        { return fmt.Sprint("arg-", i) }
func secretKey(i int) string     { return fmt.Sprint("secret-", i) }
func fileKey(name string) string { return "file-" + name }
func envKey(name string) string  { return "env-" + name }

// document is what the container "context" is told. Values of variables are in files
// beside it.
type document struct {
	BuildID    string `json:"build_id"`
	Dockerfile string `json:"dockerfile"`
	Context    []file `json:"context,omitempty"`
	// Source is nil when there is no code.
	Source *source `json:"source,omitempty"`
	// Env names the file that holds the value of a variable.
	Env map[string]string `json:"env,omitempty"`
}

type file struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
	Mode uint32 `json:"mode"`
}

type source struct {
	URL     string `json:"url"`
	Version string `json:"version"`
	// Settings are Config.SourceSettings.
	Settings []byte `json:"settings,omitempty"`
}

func newDocument(plan builder.Plan, settings []byte) document {
	d := document{BuildID: plan.BuildID, Dockerfile: plan.Dockerfile}
	for _, f := range plan.Context {
		d.Context = append(d.Context, file(f))
	}
	if s := plan.Source; s != nil {
		d.Source = &source{URL: s.URL, Version: s.Version, Settings: settings}
		d.Env = make(map[string]string, len(plan.Secrets)+len(plan.BuildArgs))
		// As in Plan.SourceEnv, arguments go before secrets.
		for i, secret := range plan.Secrets {
			d.Env[secret.ID] = secretKey(i)
		}
		for i, arg := range plan.BuildArgs {
			d.Env[arg.Name] = argKey(i)
		}
	}
	return d
}

// newSecret returns the Secret with everything that the Job's Pod reads. It belongs to
// the Job from its first moment and goes with it. Errors are of KindInvalidRequest.
func newSecret(plan builder.Plan, cfg Config, to reach, job *batchv1.Job) (*corev1.Secret, error) {
	text, err := json.Marshal(newDocument(plan, cfg.SourceSettings))
	if err != nil {
		return nil, invalid("the plan", err)
	}
	data := map[string][]byte{keyPlan: text}
	for _, f := range to.files {
		data[fileKey(f.Name)] = f.Data
	}
	for _, v := range to.env {
		data[envKey(v.name)] = []byte(v.value)
	}
	for i, arg := range plan.BuildArgs {
		data[argKey(i)] = []byte(arg.Value)
	}
	for i, secret := range plan.Secrets {
		data[secretKey(i)] = []byte(secret.Value)
	}
	size := 0
	for _, value := range data {
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		return nil, invalid("the plan", fmt.Errorf(
			"the Dockerfile, context files, arguments and secrets take %d KiB, and a Kubernetes Secret holds %d: make commands and requirements shorter, or put them into the source",
			(size+1023)>>10, corev1.MaxSecretSize>>10))
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: secretName(job), Namespace: job.Namespace, Labels: labels(plan, cfg), Annotations: identity(plan),
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Name: job.Name, UID: job.UID, Controller: new(true),
			}},
		},
		Type: corev1.SecretTypeOpaque, Immutable: new(true), Data: data,
	}, nil
}

// secretName returns the name of the Secret that the Job's Pod waits for.
func secretName(job *batchv1.Job) string {
	for _, v := range job.Spec.Template.Spec.Volumes {
		if v.Name == "plan" && v.Secret != nil {
			return v.Secret.SecretName
		}
	}
	return ""
}
