package kube

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// Containers of the Pod.
const (
	containerContext = "context"
	containerKaniko  = "kaniko"
)

// Paths inside the containers.
const (
	// PlanDir is where the container "context" finds the build's Secret. It must not be
	// below a file of the image, such as /kiln.
	PlanDir = "/etc/kiln/plan"
	// TerminationLog is where it says why it failed.
	TerminationLog = terminationLog

	terminationLog = "/dev/termination-log"
	// guarded holds what the executor reads of the Secret. The executor keeps what is
	// below its own folder, and mount points, out of images.
	guarded     = "/kaniko/kiln"
	secretFiles = guarded + "/secrets"
)

// WorkspaceDir is what both containers share: the Dockerfile and the build context.
func WorkspaceDir() string { return path.Dir(kaniko.Dockerfile) }

// capabilities are what package managers need of root; every one is allowed by the Pod
// Security Standard "baseline".
func capabilities() []corev1.Capability {
	return []corev1.Capability{
		"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "SETFCAP",
		"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "MKNOD", "AUDIT_WRITE", "SETPCAP",
	}
}

// contextContainer writes Dockerfile, context and source. It runs as root, since files
// of the context keep their owner in the image, with no privileges.
func contextContainer(plan builder.Plan, cfg Config) corev1.Container {
	return corev1.Container{
		Name:            containerContext,
		Image:           cfg.ContextImage,
		ImagePullPolicy: cfg.PullPolicy,
		// The image's entrypoint is kiln.
		Args:      []string{"context", "--plan=" + PlanDir, "--workspace=" + WorkspaceDir()},
		Env:       []corev1.EnvVar{{Name: "HOME", Value: "/tmp"}},
		Resources: cfg.resources(plan),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "plan", MountPath: PlanDir, ReadOnly: true},
			{Name: "workspace", MountPath: WorkspaceDir()},
			{Name: "tmp", MountPath: "/tmp"},
		},
	}
}

// kanikoContainer runs the executor. A command may gain privileges by set-uid programs
// such as sudo, as in docker build.
func kanikoContainer(plan builder.Plan, cfg Config, to reach, secret string) corev1.Container {
	c := corev1.Container{
		Name:            containerKaniko,
		Image:           cfg.ExecutorImage,
		ImagePullPolicy: cfg.PullPolicy,
		Command:         []string{kaniko.Executor},
		Args:            kaniko.Args(plan, to.options),
		Resources:       cfg.resources(plan),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities()},
		},
		// The digest of the image, or the end of the log.
		TerminationMessagePath:   terminationLog,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "workspace", MountPath: WorkspaceDir()},
			{Name: "guarded", MountPath: guarded, ReadOnly: true},
		},
	}
	fromSecret := func(name, key string) {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key,
		}}})
	}
	// Those of the registries go first, see kaniko.Options.Env.
	for _, v := range to.env {
		fromSecret(v.name, envKey(v.name))
	}
	for _, setting := range kaniko.Settings() {
		name, value, _ := strings.Cut(setting, "=")
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: "SSL_CERT_DIR", Value: "/kaniko/ssl/certs"})
	for i, arg := range plan.BuildArgs {
		fromSecret(arg.Name, argKey(i))
	}
	return c
}

func volumes(plan builder.Plan, cfg Config, to reach, secret string) []corev1.Volume {
	guardedItems := make([]corev1.KeyToPath, 0, len(to.files)+len(plan.Secrets))
	for _, f := range to.files {
		guardedItems = append(guardedItems, corev1.KeyToPath{Key: fileKey(f.Name), Path: f.Name, Mode: new(int32(f.Mode))}) //nolint:gosec // a mode
	}
	planItems := []corev1.KeyToPath{{Key: keyPlan, Path: keyPlan}}
	for i := range plan.Secrets {
		guardedItems = append(guardedItems, corev1.KeyToPath{Key: secretKey(i), Path: fmt.Sprintf("secrets/%d", i)})
	}
	if plan.Source != nil {
		for i := range plan.BuildArgs {
			planItems = append(planItems, corev1.KeyToPath{Key: argKey(i), Path: argKey(i)})
		}
		for i := range plan.Secrets {
			planItems = append(planItems, corev1.KeyToPath{Key: secretKey(i), Path: secretKey(i)})
		}
	}
	workspace := &corev1.EmptyDirVolumeSource{SizeLimit: resource.NewQuantity(cfg.WorkspaceSize, resource.BinarySI)}
	if cfg.WorkspaceInMemory {
		workspace.Medium = corev1.StorageMediumMemory
	}
	fromSecret := func(items []corev1.KeyToPath) corev1.VolumeSource {
		return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret, Items: items, DefaultMode: new(int32(0o400))}}
	}
	return []corev1.Volume{
		{Name: "plan", VolumeSource: fromSecret(planItems)},
		{Name: "guarded", VolumeSource: fromSecret(guardedItems)},
		{Name: "workspace", VolumeSource: corev1.VolumeSource{EmptyDir: workspace}},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: workspace.DeepCopy()}},
	}
}
