package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/builder/run/launcher"
)

// Labels and annotations of runs, beside those of builds.
const (
	labelRun     = "kiln.dev/run-id"
	labelRunName = "kiln.dev/run"

	noteRun    = "kiln.dev/run-id"
	noteImage  = "kiln.dev/image"
	noteLabels = "kiln.dev/labels"
	// noteEnded says why the run was ended, see tombstone.
	noteEnded = "kiln.dev/ended"
)

// containerRun is the container of a run's process; containerContext prepares it.
const containerRun = "run"

// Folders of the workspace of a run.
const (
	guestFolder  = "kiln"
	sourceFolder = "source"
)

// maxTermination is how many bytes of a container's termination message Kubernetes
// passes on.
const maxTermination = 4096

// runName names the Job of a run's attempt.
func runName(plan runs.Plan, cfg Config) string {
	return fmt.Sprintf("%s-run-%s-%d", cfg.Instance, plan.RunID[:shortID], plan.Attempt)
}

// asBuild is what of a run's plan the parts that builds and runs share look at.
func asBuild(plan runs.Plan) builder.Plan {
	return builder.Plan{
		BuildID: plan.RunID, Attempt: plan.Attempt, Project: plan.Project, Function: plan.Function,
		Limits: plan.Limits, Scheduling: plan.Scheduling,
	}
}

func runLabels(plan runs.Plan, cfg Config) map[string]string {
	all := selector(cfg)
	all[labelManagedBy] = "kiln"
	all[labelRun] = plan.RunID[:shortID]
	all[labelAttempt] = strconv.Itoa(plan.Attempt)
	all[labelProject] = labelValue(plan.Project)
	all[labelFunction] = labelValue(plan.Function)
	all[labelRunName] = labelValue(plan.Name)
	return all
}

func runNotes(plan runs.Plan, traceparent string) map[string]string {
	notes := map[string]string{noteRun: plan.RunID, noteImage: plan.Image}
	own, err := json.Marshal(plan.Labels)
	if err != nil || len(own) > 10<<10 || len(plan.Labels) == 0 {
		own = nil
	}
	for key, value := range map[string]string{
		noteFunction: plan.Project + "/" + plan.Function, noteLabels: string(own), noteTrace: traceparent,
	} {
		if value != "" {
			notes[key] = strings.ToValidUTF8(value, "�")
		}
	}
	return notes
}

// newRunJob returns the Job of the plan. Its Pod waits for the named Secret. Nothing in
// it is secret. Errors are of KindInvalidRequest.
func newRunJob(plan runs.Plan, cfg Config, secret, traceparent string) (*batchv1.Job, error) {
	pod, err := runTemplate(plan, cfg, secret)
	if err != nil {
		return nil, err
	}
	// Its own limit counts from the start of the process, that of the Job from its making.
	deadline := plan.Limits.Timeout + cfg.Waits.Unschedulable + cfg.Waits.Start + cfg.Margin
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: runName(plan, cfg), Namespace: cfg.Namespace, Labels: runLabels(plan, cfg), Annotations: runNotes(plan, traceparent),
		},
		Spec: jobSpec(cfg, deadline, pod),
	}, nil
}

func runTemplate(plan runs.Plan, cfg Config, secret string) (corev1.PodTemplateSpec, error) {
	preparing := contextContainer(asBuild(plan), cfg)
	preparing.Args = append(preparing.Args, "--run")
	main, err := runContainer(plan, cfg, secret)
	if err != nil {
		return corev1.PodTemplateSpec{}, err
	}
	pulls := slices.Clone(cfg.PullSecrets)
	if s := plan.RegistrySecret; s != "" && len(validation.IsDNS1123Subdomain(s)) == 0 {
		pulls = append([]string{s}, pulls...)
	}
	spec := podSpec(cfg, pulls)
	spec.TerminationGracePeriodSeconds = new(seconds(cfg.Grace))
	spec.InitContainers = []corev1.Container{preparing}
	spec.Containers = []corev1.Container{main}
	spec.Volumes = runVolumes(plan, cfg, secret)
	if err := schedule(&spec, asBuild(plan), cfg); err != nil {
		return corev1.PodTemplateSpec{}, err
	}
	meta := metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{
		// A process cannot move to another node.
		"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
	}}
	maps.Copy(meta.Labels, cfg.PodLabels)
	maps.Copy(meta.Labels, runLabels(plan, cfg))
	maps.Copy(meta.Annotations, cfg.PodAnnotations)
	return corev1.PodTemplateSpec{ObjectMeta: meta, Spec: spec}, nil
}

// runContainer runs the launcher in the image, as the image's user and with no
// privileges at all.
func runContainer(plan runs.Plan, cfg Config, secret string) (corev1.Container, error) {
	c := corev1.Container{
		Name: containerRun, Image: plan.Image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{launcher.Program}, WorkingDir: plan.Workdir, Resources: cfg.resources(asBuild(plan)),
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		TerminationMessagePath: terminationLog, TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "workspace", MountPath: launcher.Dir, SubPath: guestFolder, ReadOnly: true},
			{Name: "workspace", MountPath: launcher.Out, SubPath: guestFolder + "/out"},
		},
	}
	if plan.Source != nil {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "workspace", MountPath: plan.Source.Target, SubPath: sourceFolder})
	}
	for name, n := range plan.GPUs {
		if problems := validation.IsQualifiedName(name); len(problems) > 0 || n < 0 {
			return c, invalid("GPUs", fmt.Errorf("%d of %.80q: %s", n, name, strings.Join(problems, "; ")))
		}
		c.Resources.Limits[corev1.ResourceName(name)] = *resource.NewQuantity(n, resource.DecimalSI)
	}
	for _, v := range plan.Env {
		c.Env = append(c.Env, corev1.EnvVar{Name: v.Name, Value: literal(v.Value)})
	}
	for i, v := range plan.Secrets {
		c.Env = append(c.Env, corev1.EnvVar{Name: v.Name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: secretKey(i),
		}}})
	}
	return c, nil
}

// literal keeps Kubernetes from replacing $(NAME) in a value.
func literal(value string) string { return strings.ReplaceAll(value, "$", "$$") }

func runVolumes(plan runs.Plan, cfg Config, secret string) []corev1.Volume {
	names := sourceNames(plan)
	items := append(make([]corev1.KeyToPath, 0, 1+len(names)), corev1.KeyToPath{Key: keyPlan, Path: keyPlan})
	for i := range names {
		items = append(items, corev1.KeyToPath{Key: argKey(i), Path: argKey(i)})
	}
	workspace := &corev1.EmptyDirVolumeSource{SizeLimit: resource.NewQuantity(cfg.WorkspaceSize, resource.BinarySI)}
	if cfg.WorkspaceInMemory {
		workspace.Medium = corev1.StorageMediumMemory
	}
	return []corev1.Volume{
		{Name: "plan", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret, Items: items, DefaultMode: new(int32(0o400))}}},
		{Name: "workspace", VolumeSource: corev1.VolumeSource{EmptyDir: workspace}},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: workspace.DeepCopy()}},
	}
}

// sourceNames are the variables that credentials for the source are taken from.
func sourceNames(plan runs.Plan) []string {
	if plan.Source == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(plan.SourceEnv))
}

// runDocument is what the container "context" of a run is told.
type runDocument struct {
	RunID    string        `json:"run_id"`
	Launcher launcher.Spec `json:"launcher"`
	// Source and Env are as a build's.
	Source *source           `json:"source,omitempty"`
	Env    map[string]string `json:"env,omitempty"`
}

// guestSpec is what the launcher does in a Pod: the end of its process is told by the
// termination message.
func (r *Runner) guestSpec(ctx context.Context, plan runs.Plan) (launcher.Spec, error) {
	var entrypoint []string
	if slices.ContainsFunc(plan.Commands, func(c runs.Command) bool { return len(c.Args) == 0 }) {
		const op = "reading the image's entrypoint"
		if r.entrypoints == nil {
			return launcher.Spec{}, builder.Errorf(builder.KindInvalidRequest, op, "this runner does not read images; give the function a command")
		}
		var err error
		if entrypoint, err = r.entrypoints.Entrypoint(ctx, plan.Image, plan.RegistrySecret); err != nil {
			return launcher.Spec{}, err
		}
	}
	s := runs.LauncherSpec(plan, entrypoint)
	s.Report, s.MaxReport, s.Started = terminationLog, maxTermination, ""
	return s, nil
}

// newRunSecret returns the Secret with everything that the Job's Pod reads. It belongs to
// the Job and goes with it. Errors are of KindInvalidRequest.
func newRunSecret(plan runs.Plan, cfg Config, spec launcher.Spec, job *batchv1.Job) (*corev1.Secret, error) {
	d := runDocument{RunID: plan.RunID, Launcher: spec}
	data := map[string][]byte{}
	for i, v := range plan.Secrets {
		data[secretKey(i)] = []byte(v.Value)
	}
	if s := plan.Source; s != nil {
		d.Source, d.Env = &source{URL: s.URL, Version: s.Version, Settings: cfg.SourceSettings}, map[string]string{}
		for i, name := range sourceNames(plan) {
			data[argKey(i)], d.Env[name] = []byte(plan.SourceEnv[name]), argKey(i)
		}
	}
	text, err := json.Marshal(d)
	if err != nil {
		return nil, invalid("the plan", err)
	}
	data[keyPlan] = text
	size := 0
	for _, value := range data {
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		return nil, invalid("the plan", fmt.Errorf("code, arguments and secrets take %d KiB, and a Kubernetes Secret holds %d: put the code into a source", (size+1023)>>10, corev1.MaxSecretSize>>10))
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: secretName(job), Namespace: job.Namespace, Labels: runLabels(plan, cfg), Annotations: map[string]string{noteRun: plan.RunID},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Name: job.Name, UID: job.UID, Controller: new(true),
			}},
		},
		Type: corev1.SecretTypeOpaque, Immutable: new(true), Data: data,
	}, nil
}
