package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v6"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"kiln/builder"
)

// cluster makes the calls that the engine makes, each repeated while it fails for no
// fault of ours. The Role in deploy/manifests grants these and no others.
type cluster struct {
	client    kubernetes.Interface
	namespace string
	retryFor  time.Duration
}

// retry repeats a call with growing pauses. The error is that of the last try.
func retry[T any](ctx context.Context, most time.Duration, call func() (T, error)) (T, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 200*time.Millisecond, 5*time.Second
	result, err := backoff.Retry(ctx, func() (T, error) {
		result, err := call()
		if err == nil || transient(err) {
			return result, err
		}
		return result, backoff.Permanent(err)
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(most))
	if failed := backoff.AsRetryError(err); failed != nil && failed.LastErr != nil {
		err = failed.LastErr
	}
	return result, err
}

// transient reports whether the same call may succeed soon: the server is busy or
// broken, or was not reached at all, or a quota was being counted.
func transient(err error) bool {
	status, ok := errors.AsType[*apierrors.StatusError](err)
	if !ok {
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	code := status.Status().Code
	return code == http.StatusTooManyRequests || code >= 500 || apierrors.IsConflict(err)
}

func (c cluster) createJob(ctx context.Context, job *batchv1.Job) (*batchv1.Job, error) {
	return retry(ctx, c.retryFor, func() (*batchv1.Job, error) {
		return c.client.BatchV1().Jobs(c.namespace).Create(ctx, job, metav1.CreateOptions{})
	})
}

func (c cluster) getJob(ctx context.Context, name string) (*batchv1.Job, error) {
	return retry(ctx, c.retryFor, func() (*batchv1.Job, error) {
		return c.client.BatchV1().Jobs(c.namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// deleteJob deletes the very Job, or any of the name when uid is empty. One that is
// gone already is no error.
func (c cluster) deleteJob(ctx context.Context, name string, uid types.UID, how metav1.DeletionPropagation) error {
	opts := metav1.DeleteOptions{PropagationPolicy: &how}
	if uid != "" {
		opts.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	_, err := retry(ctx, c.retryFor, func() (struct{}, error) {
		err := c.client.BatchV1().Jobs(c.namespace).Delete(ctx, name, opts)
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// patchJob merges a change into the very Job.
func (c cluster) patchJob(ctx context.Context, name string, change []byte) error {
	_, err := retry(ctx, c.retryFor, func() (*batchv1.Job, error) {
		return c.client.BatchV1().Jobs(c.namespace).Patch(ctx, name, types.MergePatchType, change, metav1.PatchOptions{})
	})
	return err
}

// createSecret creates the Secret. One that is there already is the same: its name is
// the Job's own.
func (c cluster) createSecret(ctx context.Context, secret *corev1.Secret) error {
	_, err := retry(ctx, c.retryFor, func() (*corev1.Secret, error) {
		return c.client.CoreV1().Secrets(c.namespace).Create(ctx, secret, metav1.CreateOptions{})
	})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// refusal returns why no Pod could be made for the Job; "" is unknown.
func (c cluster) refusal(ctx context.Context, job types.UID) (reason, message string) {
	const failedCreate = "FailedCreate"
	events, err := c.client.CoreV1().Events(c.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(job), "reason": failedCreate}.String(), Limit: 50,
	})
	if err != nil {
		// It only makes the message better.
		return "", ""
	}
	for _, e := range events.Items {
		if e.InvolvedObject.UID == job && e.Reason == failedCreate {
			reason, message = e.Reason, e.Message
		}
	}
	return reason, message
}

// podLogs reads logs of Pods through the API server.
type podLogs struct {
	client    kubernetes.Interface
	namespace string
}

// Stream implements logStreams.
func (l podLogs) Stream(ctx context.Context, pod, container string, since time.Time) (io.ReadCloser, error) {
	opts := &corev1.PodLogOptions{Container: container, Follow: true, Timestamps: true}
	if !since.IsZero() {
		opts.SinceTime = &metav1.Time{Time: since}
	}
	return l.client.CoreV1().Pods(l.namespace).GetLogs(pod, opts).Stream(ctx)
}

// apiError is the error of a call that failed for good.
func apiError(ctx context.Context, op string, err error) error {
	switch {
	case ctx.Err() != nil:
		return canceled(ctx)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err):
		return &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	return unavailable(op, err)
}

// canceled is the error of a run whose context is done.
func canceled(ctx context.Context) error {
	cause := context.Cause(ctx)
	kind := builder.KindCanceled
	switch {
	case errors.Is(cause, builder.ErrShutdown):
		kind = builder.KindInterrupted
	case errors.Is(cause, builder.ErrLeaseLost):
		kind = builder.KindLeaseLost
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: "building", Err: cause}
}
