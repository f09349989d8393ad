package kube

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/propagation"
	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"kiln/builder"
)

// start finds or makes the Job of the plan, and its Secret.
func (r *run) start(ctx context.Context) error {
	job, err := r.join(ctx)
	if err == nil && job == nil {
		job, err = r.create(ctx)
	}
	if err != nil {
		return err
	}
	r.job = job
	if pod := r.engine.objects.pod(job.UID); begun(pod, containerContext) {
		return nil
	}
	// The worker that made the Job may have ended before it made the Secret.
	return r.createSecret(ctx)
}

// join returns a Job of this build that some worker left, in whatever attempt; nil:
// there is none. The cache may be behind, so that the server has the word.
func (r *run) join(ctx context.Context) (*batchv1.Job, error) {
	for _, known := range r.engine.objects.jobsOf(r.plan.BuildID) {
		if !sameBuild(known, r.plan) {
			continue
		}
		job, err := r.engine.api.getJob(ctx, known.Name)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return nil, apiError(ctx, "reading the Job", err)
		case job.UID == known.UID && job.DeletionTimestamp == nil:
			r.say("Joined the Job %s/%s", job.Namespace, job.Name)
			return job, nil
		}
	}
	return nil, nil
}

// create makes the Job. One that is there already is joined when it is of this build;
// that is also how a create ends that succeeded and reported an error.
func (r *run) create(ctx context.Context) (*batchv1.Job, error) {
	const op = "creating the Job"
	api := r.engine.api
	to, err := r.engine.cfg.reachFor(ctx, r.plan)
	if err != nil {
		return nil, err
	}
	r.to = &to
	wanted, err := newJob(r.plan, r.engine.cfg, to, jobName(r.plan, r.engine.cfg)+"-"+utilrand.String(8), traceparent(ctx))
	if err != nil {
		return nil, err
	}
	for {
		r.created = true
		job, err := api.createJob(ctx, wanted)
		if err == nil {
			r.say("Created the Job %s/%s", job.Namespace, job.Name)
			return job, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, apiError(ctx, op, err)
		}
		r.created = false
		job, err = api.getJob(ctx, wanted.Name)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return nil, apiError(ctx, op, err)
		case !sameBuild(job, r.plan):
			return nil, builder.Errorf(builder.KindUnavailable, op, "a Job %s of another build is there (%s)", job.Name, job.Annotations[noteBuild])
		case job.DeletionTimestamp == nil:
			r.say("Joined the Job %s/%s", job.Namespace, job.Name)
			return job, nil
		}
		if err := r.awaitGone(ctx, job.Name, job.UID); err != nil {
			return nil, err
		}
	}
}

// traceparent returns the W3C trace context of ctx; "" is none.
func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}

// createSecret makes what the Pod waits for. Without it the Job is of no use.
func (r *run) createSecret(ctx context.Context) error {
	cfg := r.engine.cfg
	if r.to == nil {
		to, err := cfg.reachFor(ctx, r.plan)
		if err != nil {
			return r.without(ctx, err)
		}
		r.to = &to
	}
	secret, err := newSecret(r.plan, cfg, *r.to, r.job)
	if err != nil {
		return r.without(ctx, err)
	}
	if err := r.engine.api.createSecret(ctx, secret); err != nil {
		return r.without(ctx, apiError(ctx, "creating the Secret", err))
	}
	return nil
}

// without removes the Job that could not get its Secret, unless it is left to others.
func (r *run) without(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		r.remove(ctx)
	}
	return err
}

// awaitGone waits until the Job and its Pods are gone.
func (r *run) awaitGone(ctx context.Context, name string, uid types.UID) error {
	o := r.engine.objects
	changes, stop := o.subscribe(name)
	defer stop()
	// A deletion that the informer misses is found by asking.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if job := o.job(r.engine.cfg.Namespace, name); (job == nil || job.UID != uid) && o.pod(uid) == nil {
			job, err := r.engine.api.getJob(ctx, name)
			if apierrors.IsNotFound(err) || (err == nil && job.UID != uid) {
				return nil
			}
		}
		select {
		case <-changes:
		case <-tick.C:
		case <-ctx.Done():
			return canceled(ctx)
		}
	}
}

// remove deletes the Job and waits for its Pod to end, whatever became of ctx.
func (r *run) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.engine.cfg.Grace)
	defer cancel()
	name, uid := jobName(r.plan, r.engine.cfg), types.UID("")
	if r.job != nil {
		name, uid = r.job.Name, r.job.UID
	}
	// What cannot be deleted now ends by its own deadline, and is swept.
	if err := r.engine.api.deleteJob(ctx, name, uid, metav1.DeletePropagationForeground); err == nil && uid != "" {
		_ = r.awaitGone(ctx, name, uid)
	}
}

// collect deletes a Job whose result was read. Nobody has to wait for it.
func (r *run) collect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.engine.cfg.Grace)
	defer cancel()
	_ = r.engine.api.deleteJob(ctx, r.job.Name, r.job.UID, metav1.DeletePropagationBackground)
}
