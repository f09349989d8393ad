package kube

import (
	"cmp"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"kiln/builder"
)

// cause is a kind of thing that holds a build up.
type cause int

const (
	// causeNone: the build runs.
	causeNone cause = iota
	// causeNoPod: the Job has no Pod yet.
	causeNoPod
	// causeNode: no node takes the Pod.
	causeNode
	// causeImage: a node cannot pull an image.
	causeImage
	// causeContainer: a container cannot be made.
	causeContainer
	// causeStart: the node is busy with the Pod.
	causeStart
	// causeSettle: Job and Pod disagree; one of them has not arrived yet.
	causeSettle
)

// reasonPodDeleted is Kiln's own word.
const reasonPodDeleted = "PodDeleted"

// hold is what holds a build up, with the cluster's own words for it.
type hold struct {
	cause           cause
	reason, message string
}

// held returns what holds up a build that has not ended.
func (v view) held() hold {
	over := v.failed()
	if over == nil && v.job != nil {
		over = jobCondition(v.job, batchv1.JobComplete)
	}
	switch {
	case over != nil:
		return hold{cause: causeSettle, reason: over.Reason, message: over.Message}
	case v.pod == nil:
		return hold{cause: causeNoPod}
	case v.pod.DeletionTimestamp != nil:
		return hold{cause: causeSettle, reason: reasonPodDeleted, message: "somebody is deleting its Pod"}
	}
	if c := condition(v.pod, corev1.PodScheduled); v.pod.Spec.NodeName == "" && c != nil && c.Status == corev1.ConditionFalse {
		return hold{cause: causeNode, reason: c.Reason, message: c.Message}
	}
	for _, container := range []string{containerContext, mainOf(v.pod)} {
		s := status(v.pod, container)
		switch {
		case s == nil:
			return hold{cause: causeStart}
		case s.State.Waiting != nil:
			return waiting(*s.State.Waiting)
		case s.State.Running != nil:
			return hold{}
		}
	}
	return hold{cause: causeSettle}
}

// waiting reads the reasons that kubelet gives.
func waiting(w corev1.ContainerStateWaiting) hold {
	h := hold{cause: causeStart, reason: w.Reason, message: w.Message}
	switch w.Reason {
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable",
		"SignatureValidationFailed":
		h.cause = causeImage
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError":
		h.cause = causeContainer
	}
	return h
}

// allowed is how long the cause may last.
func (w Waits) allowed(c cause) time.Duration {
	switch c {
	case causeNoPod:
		return w.Refused
	case causeNode:
		return w.Unschedulable
	case causeImage:
		return w.Image
	case causeContainer:
		return w.Container
	case causeSettle:
		return w.Settle
	default:
		return w.Start
	}
}

// tooLong is the error of a build that was held up for longer than allowed.
func (h hold) tooLong(v view, plan builder.Plan, waited time.Duration) error {
	kind, op := builder.KindUnavailable, "starting the Pod"
	switch h.cause {
	case causeSettle:
		if h.reason == reasonPodDeleted {
			return builder.Errorf(kind, "running the Pod", "%s", h.message)
		}
		return jobEnded(v.failed())
	case causeNode:
		op = "waiting for a node"
		// Where the function chose the nodes, it is the function that has to change.
		if s := plan.Scheduling; len(s.NodeSelector) > 0 || len(s.Affinity) > 0 {
			kind = builder.KindInvalidRequest
		}
	case causeNoPod:
		op = "waiting for the Pod"
	default:
	}
	text := cmp.Or(reasoned(h.reason, h.message), "nothing happened")
	return builder.Errorf(kind, op, "%s (for %s)", text, waited)
}

// refused is the error of a build whose Pod the cluster refuses to make.
func refused(plan builder.Plan, reason, message string) error {
	kind := builder.KindUnavailable
	if s := plan.Scheduling; s.ServiceAccount != "" || s.PriorityClass != "" {
		kind = builder.KindInvalidRequest
	}
	return builder.Errorf(kind, "making the Pod", "%s", reasoned(reason, message))
}
