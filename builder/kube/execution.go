package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/builder/run/launcher"
)

// execution is one call of Runner.Run. It watches its Job as a build does.
type execution struct {
	*run
	runner *Runner
	plan   runs.Plan
	watch  runs.Watch
	// expire ends the call when the process took too long.
	expire context.CancelCauseFunc

	mu    sync.Mutex
	limit *time.Timer
}

func newExecution(r *Runner, plan runs.Plan, watch runs.Watch, expire context.CancelCauseFunc) *execution {
	if watch.Logs == nil {
		watch.Logs = io.Discard
	}
	x := &execution{run: newRun(r.engine, asBuild(plan), watch.Logs), runner: r, plan: plan, watch: watch, expire: expire}
	x.main, x.image, x.lines = containerRun, plan.Image, &wholeLines{w: x.out}
	x.ended, x.began = x.runEnded, x.started
	return x
}

// stop ends the watch of the time limit.
func (x *execution) stop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.limit != nil {
		x.limit.Stop()
	}
}

// started is called with every view of a process that was started.
func (x *execution) started(at time.Time) {
	x.mu.Lock()
	first := x.limit == nil
	// Kubernetes cuts times to seconds: nobody is to be ended early.
	if now, late := time.Now(), at.Add(time.Second); at.IsZero() || late.After(now) {
		at = now
	} else {
		at = late
	}
	if first {
		x.limit = time.AfterFunc(time.Until(at.Add(x.plan.Limits.Timeout)), func() {
			x.expire(fmt.Errorf("%w of %s", errLimit, x.plan.Limits.Timeout))
		})
	}
	x.mu.Unlock()
	if first && x.watch.Started != nil {
		x.watch.Started(at.UTC())
	}
}

// do runs the plan to its result or error.
func (x *execution) do(ctx context.Context) (runs.Result, error) {
	if err := x.find(ctx); err != nil {
		return runs.Result{}, x.unfound(ctx, err)
	}
	follow := x.follow(ctx)
	end, err := x.run.watch(ctx, follow)
	if end == nil {
		if leaves(ctx) {
			follow.stop()
			return runs.Result{}, runCanceled(ctx)
		}
		if ctx.Err() != nil {
			err = runCanceled(ctx)
		} else if x.blind {
			follow.stop()
			return runs.Result{}, unknown(ctx, opRun, err)
		}
		// It cannot be started, or must not go on, and nobody shall start it later.
		err = x.bury(ctx, err)
		follow.finish(ctx)
		return runs.Result{}, err
	}
	follow.finish(ctx)
	return x.judge(end)
}

// find attaches to the attempt's Job, or makes it.
func (x *execution) find(ctx context.Context) error {
	const op = "creating the Job"
	api, name := x.engine.api, runName(x.plan, x.engine.cfg)
	// What is there counts, even when ctx is done: it may have to be ended.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.engine.cfg.Grace)
	defer cancel()
	job, err := api.getJob(look, name)
	for apierrors.IsNotFound(err) {
		if ctx.Err() != nil {
			return runCanceled(ctx)
		}
		if job, err = x.make(ctx); err == nil {
			x.job = job
			return nil
		}
		if _, ours := errors.AsType[*builder.Error](err); ours {
			return err
		}
		if !apierrors.IsAlreadyExists(err) {
			return runError(ctx, op, err)
		}
		// Another caller was faster, or the error of a call that succeeded.
		job, err = api.getJob(ctx, name)
	}
	switch {
	case err != nil:
		return unknown(ctx, op, err)
	case !sameRun(job, x.plan):
		return builder.Errorf(builder.KindUnavailable, op, "a Job %s of another run is there (%s)", name, job.Annotations[noteRun])
	case job.DeletionTimestamp != nil:
		return builder.Errorf(builder.KindUnavailable, op, "the Job %s is being deleted", name)
	}
	x.job = job
	if _, buried := tombstoneOf(job); buried || ctx.Err() != nil || begun(x.engine.objects.pod(job.UID), containerContext) || jobOver(job) {
		return nil
	}
	// Whoever made the Job may have ended before it made the Secret.
	return x.complete(ctx)
}

// jobOver reports whether the Job has ended.
func jobOver(job *batchv1.Job) bool {
	return slices.ContainsFunc([]batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed}, func(kind batchv1.JobConditionType) bool {
		return jobCondition(job, kind) != nil
	})
}

// make makes the Job and what it waits for.
func (x *execution) make(ctx context.Context) (*batchv1.Job, error) {
	cfg := x.engine.cfg
	spec, err := x.runner.guestSpec(ctx, x.plan)
	if err != nil {
		return nil, err
	}
	wanted, err := newRunJob(x.plan, cfg, runName(x.plan, cfg)+"-"+utilrand.String(8), traceparent(ctx))
	if err != nil {
		return nil, err
	}
	// What cannot be told to the Pod must not leave a Job behind.
	if _, err := newRunSecret(x.plan, cfg, spec, wanted); err != nil {
		return nil, err
	}
	x.created = true
	job, err := x.engine.api.createJob(ctx, wanted)
	if err != nil {
		return nil, err
	}
	x.say("Created the Job %s/%s", job.Namespace, job.Name)
	x.job = job
	return job, x.complete(ctx)
}

// complete makes the Secret, without which the Job is of no use.
func (x *execution) complete(ctx context.Context) error {
	spec, err := x.runner.guestSpec(ctx, x.plan)
	if err != nil {
		return err
	}
	secret, err := newRunSecret(x.plan, x.engine.cfg, spec, x.job)
	if err != nil {
		return err
	}
	if err := x.engine.api.createSecret(ctx, secret); err != nil {
		return runError(ctx, "creating the Secret", err)
	}
	return nil
}

// unfound is for a call that has no Job to watch, or one that lacks its Secret.
func (x *execution) unfound(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = runCanceled(ctx)
	}
	if x.job == nil && !x.created || leaves(ctx) {
		return err
	}
	if x.job == nil {
		// The Job may be there although its making failed.
		look, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.engine.cfg.Grace)
		defer cancel()
		job, gerr := x.engine.api.getJob(look, runName(x.plan, x.engine.cfg))
		if apierrors.IsNotFound(gerr) || gerr == nil && !sameRun(job, x.plan) {
			return err
		}
		if gerr != nil {
			return unknown(ctx, "creating the Job", gerr)
		}
		x.job = job
	}
	return x.bury(ctx, err)
}

// tombstone says why a run was ended. The Job that carries it stays, so that the attempt
// is not made again.
type tombstone struct {
	Kind    builder.Kind `json:"kind"`
	Op      string       `json:"op"`
	Message string       `json:"message"`
	At      time.Time    `json:"at"`
}

func tombstoneOf(job *batchv1.Job) (tombstone, bool) {
	var t tombstone
	text, ok := job.Annotations[noteEnded]
	if !ok || json.Unmarshal([]byte(text), &t) != nil || !slices.Contains(builder.Kinds(), t.Kind) {
		return tombstone{}, false
	}
	return t, true
}

func (t tombstone) err() error {
	return &builder.Error{Kind: t.Kind, Op: t.Op, Err: errors.New(t.Message)}
}

// bury ends the Job's Pod by a deadline that has passed and writes why into it, waits for
// the Pod's end, and returns the error.
func (x *execution) bury(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.engine.cfg.Grace+x.engine.cfg.Waits.Settle)
	defer cancel()
	t := tombstone{Kind: builder.KindOf(err), Message: short(err.Error(), maxFailure), At: time.Now().UTC()}
	if e, ok := errors.AsType[*builder.Error](err); ok {
		t.Op, t.Message = e.Op, short(e.Err.Error(), maxFailure)
	}
	text, merr := json.Marshal(t)
	if merr != nil {
		return err
	}
	change, merr := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": x.job.UID, "annotations": map[string]string{noteEnded: string(text)}},
		"spec":     map[string]any{"activeDeadlineSeconds": 1},
	})
	if merr != nil {
		return err
	}
	x.say("Stopping: %s", err)
	switch perr := x.engine.api.patchJob(ctx, x.job.Name, change); {
	case perr == nil:
		x.awaitStopped(ctx)
	case !apierrors.IsNotFound(perr):
		// It goes on, for all that is known.
		return unknown(ctx, "ending the run", perr)
	}
	return err
}

// unknown is the error of a call that leaves open whether the process runs.
func unknown(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil && leaves(ctx) {
		return runCanceled(ctx)
	}
	return &builder.Error{Kind: builder.KindInterrupted, Op: op, Err: err}
}

// awaitStopped waits until the Job's Pod has ended or is gone.
func (x *execution) awaitStopped(ctx context.Context) {
	o := x.engine.objects
	changes, stop := o.subscribe(x.job.Name)
	defer stop()
	// What the informer misses is found by asking: a Job has failed once its Pods are gone.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		pod := o.pod(x.job.UID)
		if job := o.job(x.job.Namespace, x.job.Name); over(pod) || pod == nil && (job == nil || jobOver(job)) {
			return
		}
		select {
		case <-changes:
		case <-tick.C:
			job, err := x.engine.api.getJob(ctx, x.job.Name)
			if apierrors.IsNotFound(err) || err == nil && jobOver(job) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// runEnded returns how the run ended; nil: it goes on, as far as this view shows.
func (x *execution) runEnded(v view) *ending {
	if v.job != nil {
		if t, ok := tombstoneOf(v.job); ok {
			return &ending{err: t.err()}
		}
	}
	if main := terminated(v.pod, containerRun); main != nil {
		if end := v.disrupted(); end != nil && main.Message == "" {
			return end
		}
		return &ending{exit: main}
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
		return failing(builder.KindTimeout, opRun, "DeadlineExceeded: it took longer than the Job may")
	}
	if v.pod == nil || v.pod.DeletionTimestamp != nil {
		return nil
	}
	if preparation := terminated(v.pod, containerContext); preparation != nil && preparation.ExitCode != 0 {
		return v.unprepared(preparation)
	}
	if v.pod.Status.Phase == corev1.PodFailed {
		return failing(builder.KindUnavailable, "running the Pod", "%s", reasoned(v.pod.Status.Reason, v.pod.Status.Message))
	}
	return nil
}

// judge turns the ending into a result or an error.
func (x *execution) judge(end *ending) (runs.Result, error) {
	if end.exit == nil {
		return runs.Result{}, end.err
	}
	t := end.exit
	var report launcher.Report
	told := json.Unmarshal([]byte(t.Message), &report) == nil
	switch {
	case told && report.Failure != "":
		return runs.Result{}, builder.Errorf(builder.KindInvalidRequest, "starting the process", "%s", short(report.Failure, maxFailure))
	case t.Reason == reasonOOMKilled && t.ExitCode != 0:
		return runs.Result{}, builder.Errorf(builder.KindOutOfMemory, opRun, "OOMKilled: it needed more memory than its limit")
	case !told:
		return runs.Result{}, builder.Errorf(builder.KindUnavailable, opRun, "%s", reasoned(t.Reason, fmt.Sprintf("exit code %d, and nobody told how it ended. %s", t.ExitCode, t.Message)))
	}
	if report.Note != "" {
		x.say("%s", report.Note)
	}
	results, _ := launcher.CheckResults(report.Results, runs.MaxResults)
	return runs.Result{ExitCode: report.ExitCode, Started: report.Started.UTC(), Finished: report.Finished.UTC(), Results: results}, nil
}

// wholeLines passes on lines that are whole, and very long ones in pieces.
type wholeLines struct {
	w    io.Writer
	line []byte
}

// Write implements io.Writer; it gets lines, or pieces of very long ones.
func (l *wholeLines) Write(p []byte) (int, error) {
	l.line = append(l.line, p...)
	if n := len(l.line); n > 0 && (l.line[n-1] == '\n' || n > maxLine) {
		_ = l.Close()
	}
	return len(p), nil
}

// Close passes on what is left. It may be written to again.
func (l *wholeLines) Close() error {
	if n := len(l.line); n > 0 {
		if l.line[n-1] != '\n' {
			l.line = append(l.line, '\n')
		}
		_, _ = l.w.Write(l.line)
		l.line = l.line[:0]
	}
	return nil
}
