package kube

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sweepForever sweeps until ctx is done.
func (e *Engine) sweepForever(ctx context.Context) {
	ticker := time.NewTicker(e.cfg.SweepEvery)
	defer ticker.Stop()
	for {
		e.sweep(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sweep deletes Jobs that should be gone by their own deadline and TTL, and no run of
// this process is for: those that a cluster without a TTL controller keeps, or whose Pod
// could never be made. Their Secrets go with them, as every Secret has a Job.
func (e *Engine) sweep(ctx context.Context, now time.Time) {
	for _, object := range e.objects.jobs.GetIndexer().List() {
		job, ok := object.(*batchv1.Job)
		if !ok || job.DeletionTimestamp != nil || now.Before(e.expiry(job)) || e.runsFor(job) {
			continue
		}
		// The next sweep tries again.
		_ = e.api.deleteJob(ctx, job.Name, job.UID, metav1.DeletePropagationBackground)
	}
}

// expiry is when nothing of the Job should be left.
func (e *Engine) expiry(job *batchv1.Job) time.Time {
	life := e.cfg.TTL + e.cfg.Margin
	if s := job.Spec.ActiveDeadlineSeconds; s != nil {
		life += time.Duration(*s) * time.Second
	}
	if tomb, ok := tombstoneOf(job); ok {
		// Its deadline is not its own any more.
		return tomb.At.Add(life)
	}
	return job.CreationTimestamp.Add(life)
}

func (e *Engine) runsFor(job *batchv1.Job) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.running[job.Annotations[noteBuild]]
	return ok
}
