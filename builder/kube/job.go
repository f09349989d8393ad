package kube

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"kiln/builder"
)

// Labels and annotations. Labels select and hold at most 63 characters, annotations
// hold the whole truth.
const (
	labelName      = "app.kubernetes.io/name"
	labelComponent = "app.kubernetes.io/component"
	labelInstance  = "app.kubernetes.io/instance"
	labelManagedBy = "app.kubernetes.io/managed-by"

	labelBuild    = "kiln.dev/build-id"
	labelProject  = "kiln.dev/project"
	labelFunction = "kiln.dev/function"
	labelAttempt  = "kiln.dev/attempt"

	noteBuild       = "kiln.dev/build-id"
	noteDestination = "kiln.dev/destination"
	noteRequest     = "kiln.dev/request-id"
	noteFunction    = "kiln.dev/function"
	noteTarget      = "kiln.dev/target"
	noteTrace       = "kiln.dev/traceparent"
)

// shortID is how many digits of a build id names and labels have.
const shortID = 16

// jobName names the Job of a build's attempt.
func jobName(plan builder.Plan, cfg Config) string {
	return fmt.Sprintf("%s-%s-%d", cfg.Instance, plan.BuildID[:shortID], plan.Attempt)
}

// selector selects the Jobs and Pods of an installation.
func selector(cfg Config) map[string]string {
	return map[string]string{labelName: "kiln", labelComponent: cfg.component, labelInstance: cfg.Instance}
}

func labels(plan builder.Plan, cfg Config) map[string]string {
	all := selector(cfg)
	all[labelManagedBy] = "kiln"
	all[labelBuild] = plan.BuildID[:shortID]
	all[labelAttempt] = strconv.Itoa(plan.Attempt)
	all[labelProject] = labelValue(plan.Project)
	all[labelFunction] = labelValue(plan.Function)
	return all
}

// labelValue returns what of the text a label can hold.
func labelValue(text string) string {
	text = strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9') || strings.ContainsRune("-_.", r) {
			return r
		}
		return '-'
	}, text)
	text = text[:min(len(text), validation.LabelValueMaxLength)]
	return strings.Trim(text, "-_.")
}

// identity returns the annotations that a Job must have to be of the plan: the content
// that it builds and where it pushes it.
func identity(plan builder.Plan) map[string]string {
	return map[string]string{noteBuild: plan.BuildID, noteDestination: plan.Destination}
}

// sameBuild reports whether the Job makes what the plan asks for, in any attempt.
func sameBuild(job *batchv1.Job, plan builder.Plan) bool {
	for key, value := range identity(plan) {
		if job.Annotations[key] != value {
			return false
		}
	}
	return true
}

// newJob returns the Job of the plan. Its Pod waits for the named Secret. Nothing in
// it is secret. Errors are of KindInvalidRequest.
func newJob(plan builder.Plan, cfg Config, to reach, secret, traceparent string) (*batchv1.Job, error) {
	notes := identity(plan)
	for key, value := range map[string]string{
		noteRequest: plan.RequestID, noteFunction: plan.Project + "/" + plan.Function + ":" + plan.Tag,
		noteTarget: plan.Target, noteTrace: traceparent,
	} {
		if value != "" {
			notes[key] = strings.ToValidUTF8(value, "�")
		}
	}
	pod, err := podTemplate(plan, cfg, to, secret)
	if err != nil {
		return nil, err
	}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: jobName(plan, cfg), Namespace: cfg.Namespace, Labels: labels(plan, cfg), Annotations: notes},
		Spec:       jobSpec(cfg, cfg.limits(plan).Timeout+cfg.Margin, pod),
	}, nil
}

// jobSpec is that of every Job: one Pod, once. Attempts are counted in Kiln's own records.
func jobSpec(cfg Config, deadline time.Duration, pod corev1.PodTemplateSpec) batchv1.JobSpec {
	return batchv1.JobSpec{
		Parallelism:             new(int32(1)),
		Completions:             new(int32(1)),
		BackoffLimit:            new(int32(0)),
		ActiveDeadlineSeconds:   new(seconds(deadline)),
		TTLSecondsAfterFinished: new(int32(min(seconds(cfg.TTL), math.MaxInt32))), //nolint:gosec // bounded
		// A drained or preempted Pod is deleted, and its status with it: this keeps the
		// reason in that of the Job.
		PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action:          batchv1.PodFailurePolicyActionFailJob,
			OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}},
		}}},
		PodReplacementPolicy: new(batchv1.Failed),
		Template:             pod,
	}
}

// podSpec is what every Pod has: it sees nothing of the cluster, and is isolated as the
// configuration says. Pulls are the Secrets that its images are pulled with.
func podSpec(cfg Config, pulls []string) corev1.PodSpec {
	spec := corev1.PodSpec{
		RestartPolicy:                corev1.RestartPolicyNever,
		AutomountServiceAccountToken: new(false),
		// The variables of the namespace's services would reach the process.
		EnableServiceLinks: new(false),
		SecurityContext:    &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
	}
	if cfg.UserNamespaces {
		spec.HostUsers = new(false)
	}
	if cfg.RuntimeClass != "" {
		spec.RuntimeClassName = &cfg.RuntimeClass
	}
	for _, name := range pulls {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return spec
}

// seconds rounds up: Kiln's own limit ends before that of the Job.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

func podTemplate(plan builder.Plan, cfg Config, to reach, secret string) (corev1.PodTemplateSpec, error) {
	spec := podSpec(cfg, cfg.PullSecrets)
	// The executor does nothing useful after a signal.
	spec.TerminationGracePeriodSeconds = new(int64(5))
	spec.InitContainers = []corev1.Container{contextContainer(plan, cfg)}
	spec.Containers = []corev1.Container{kanikoContainer(plan, cfg, to, secret)}
	spec.Volumes = volumes(plan, cfg, to, secret)
	if err := schedule(&spec, plan, cfg); err != nil {
		return corev1.PodTemplateSpec{}, err
	}
	meta := metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{
		// A build cannot move to another node.
		"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
	}}
	maps.Copy(meta.Labels, cfg.PodLabels)
	maps.Copy(meta.Labels, labels(plan, cfg))
	maps.Copy(meta.Annotations, cfg.PodAnnotations)
	return corev1.PodTemplateSpec{ObjectMeta: meta, Spec: spec}, nil
}
