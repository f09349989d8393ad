package kube

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"kiln/builder"
)

// view is what the cluster says of a build at one moment. Every decision is made on a
// whole view.
type view struct {
	// job is nil once it is gone.
	job *batchv1.Job
	// pod is the newest of the Job's Pods; nil: none.
	pod *corev1.Pod
}

// ending is how a build ended, apart from its log.
type ending struct {
	// digest of the pushed image. Empty: it failed.
	digest string
	// err says why it failed, unless exit has to be read together with the log.
	err error
	// exit is how the executor ended when that is what failed.
	exit *corev1.ContainerStateTerminated
}

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ended returns how the build ended; nil: it goes on, as far as this view shows.
func (v view) ended() *ending {
	executor := terminated(v.pod, containerKaniko)
	if executor != nil && executor.ExitCode == 0 {
		digest := strings.TrimSpace(executor.Message)
		if !digestPattern.MatchString(digest) {
			return failing(builder.KindUnavailable, "reading the digest", "the executor succeeded and left %.100q", digest)
		}
		return &ending{digest: digest}
	}
	if v.job == nil {
		return failing(builder.KindUnavailable, "watching the Job", "somebody deleted it")
	}
	if end := v.disrupted(); end != nil {
		return end
	}
	if v.job.DeletionTimestamp != nil {
		return failing(builder.KindUnavailable, "watching the Job", "somebody is deleting it")
	}
	if c := v.failed(); c != nil && c.Reason == batchv1.JobReasonDeadlineExceeded {
		return failing(builder.KindTimeout, "building", "DeadlineExceeded: it took longer than the Job may")
	}
	if v.pod == nil || v.pod.DeletionTimestamp != nil {
		return nil
	}
	if preparation := terminated(v.pod, containerContext); preparation != nil && preparation.ExitCode != 0 {
		return v.unprepared(preparation)
	}
	if executor != nil {
		return v.exited(executor)
	}
	if v.pod.Status.Phase == corev1.PodFailed {
		return failing(builder.KindUnavailable, "running the Pod", "%s", reasoned(v.pod.Status.Reason, v.pod.Status.Message))
	}
	return nil
}

// disrupted is for a Pod that its node or the cluster ended.
func (v view) disrupted() *ending {
	if v.pod == nil {
		return nil
	}
	if c := condition(v.pod, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		return failing(builder.KindUnavailable, "running the Pod", "%s", reasoned(c.Reason, c.Message))
	}
	// A node under pressure says so by the condition; without it the Pod outgrew a limit
	// of its own, and the only one that evicts is that of the disk.
	if v.pod.Status.Reason == reasonEvicted {
		return failing(builder.KindDiskFull, "building", "%s", reasoned(reasonEvicted, v.pod.Status.Message))
	}
	return nil
}

// Reasons in the status of Pods and containers that the API does not define.
const (
	reasonEvicted   = "Evicted"
	reasonOOMKilled = "OOMKilled"
)

func (v view) unprepared(t *corev1.ContainerStateTerminated) *ending {
	switch t.Reason {
	case reasonOOMKilled:
		return failing(builder.KindOutOfMemory, "preparing the build", "OOMKilled: it needed more memory than its limit%s", v.memoryOf(containerContext))
	case "Error", "":
		return &ending{err: failed(t.Message, t.ExitCode)}
	}
	return failing(builder.KindUnavailable, "preparing the build", "%s", reasoned(t.Reason, t.Message))
}

// memoryOf is " of 16 MiB" where a container of the Pod has such a limit.
func (v view) memoryOf(name string) string {
	for _, c := range slices.Concat(v.pod.Spec.InitContainers, v.pod.Spec.Containers) {
		if q := c.Resources.Limits.Memory(); c.Name == name && !q.IsZero() {
			return fmt.Sprintf(" of %d MiB", q.Value()>>20)
		}
	}
	return ""
}

func (v view) exited(t *corev1.ContainerStateTerminated) *ending {
	switch t.Reason {
	case reasonOOMKilled, "Error", "":
		return &ending{exit: t}
	}
	// The runtime could not start it, or nobody knows how it ended.
	return failing(builder.KindUnavailable, "running the build tool", "%s", reasoned(t.Reason, t.Message))
}

// failed returns the condition that the Job has failed by; nil: none.
func (v view) failed() *batchv1.JobCondition {
	if v.job == nil {
		return nil
	}
	for _, kind := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobFailureTarget} {
		if c := jobCondition(v.job, kind); c != nil {
			return c
		}
	}
	return nil
}

func jobCondition(job *batchv1.Job, kind batchv1.JobConditionType) *batchv1.JobCondition {
	for i, c := range job.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return &job.Status.Conditions[i]
		}
	}
	return nil
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i, c := range pod.Status.Conditions {
		if c.Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// status returns what the Pod says of its container; nil: nothing.
func status(pod *corev1.Pod, container string) *corev1.ContainerStatus {
	if pod == nil {
		return nil
	}
	all := pod.Status.ContainerStatuses
	if container == containerContext {
		all = pod.Status.InitContainerStatuses
	}
	for i := range all {
		if all[i].Name == container {
			return &all[i]
		}
	}
	return nil
}

// mainOf names the container that does the work.
func mainOf(pod *corev1.Pod) string {
	if len(pod.Spec.Containers) == 0 {
		return containerKaniko
	}
	return pod.Spec.Containers[0].Name
}

func terminated(pod *corev1.Pod, container string) *corev1.ContainerStateTerminated {
	if s := status(pod, container); s != nil {
		return s.State.Terminated
	}
	return nil
}

// begun reports whether the container runs or has run.
func begun(pod *corev1.Pod, container string) bool {
	s := status(pod, container)
	return s != nil && (s.State.Running != nil || s.State.Terminated != nil)
}

// begunAt returns when the container began; zero: it has not.
func begunAt(pod *corev1.Pod, container string) time.Time {
	switch s := status(pod, container); {
	case s == nil:
		return time.Time{}
	case s.State.Running != nil:
		return s.State.Running.StartedAt.Time
	case s.State.Terminated != nil:
		return s.State.Terminated.StartedAt.Time
	}
	return time.Time{}
}

func failing(kind builder.Kind, op, format string, args ...any) *ending {
	return &ending{err: builder.Errorf(kind, op, format, args...)}
}

// reasoned is a reason of Kubernetes with its message, in one line.
func reasoned(reason, message string) string {
	const most = 1000
	text := short(message, most)
	switch {
	case reason == "":
		return text
	case text == "":
		return reason
	}
	return reason + ": " + text
}

// errGone is the cause when the Pod took with it what only it knew.
var errGone = errors.New("its Pod is gone, and with it how it ended")

func jobEnded(c *batchv1.JobCondition) error {
	if c == nil {
		return unavailable("watching the Job", errGone)
	}
	return unavailable("watching the Job", fmt.Errorf("%s: %w", reasoned(c.Reason, c.Message), errGone))
}
