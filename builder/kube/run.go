package kube

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// run is one run of a plan.
type run struct {
	engine *Engine
	plan   builder.Plan
	// out is the build's log; log is the executor's part of it.
	out *lines
	log *kaniko.Log
	// main names the container that does the work, and image what it is made of.
	main, image string
	// lines takes what that container writes, until it is closed.
	lines io.WriteCloser
	// ended tells from a view how it ended; nil: it goes on.
	ended func(view) *ending
	// began is called with every view in which the main container has begun.
	began func(time.Time)
	// told are the lines that were said already.
	told map[string]bool

	// to is how the registries are reached; nil until it is needed.
	to *reach
	// job is the newest state that was seen; nil before there is one.
	job *batchv1.Job
	// created says that the Job may exist although job is nil.
	created bool
	// cached says that the Job was in the cache.
	cached bool
	// blind says that the API server does not tell what became of the Job.
	blind bool
}

func newRun(e *Engine, plan builder.Plan, logs io.Writer) *run {
	out := &lines{w: logs}
	log := kaniko.NewLog(out)
	return &run{
		engine: e, plan: plan, out: out, log: log, told: make(map[string]bool), main: containerKaniko, image: e.cfg.ExecutorImage,
		lines: closing{log}, ended: view.ended, began: func(time.Time) {},
	}
}

// closing makes an io.WriteCloser of the executor's log.
type closing struct{ *kaniko.Log }

// Close implements io.Closer.
func (c closing) Close() error {
	c.Log.Close()
	return nil
}

// lines lets several goroutines write whole lines.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// say writes a line once.
func (r *run) say(format string, args ...any) {
	line := kaniko.Clean(strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
	if !r.told[line] {
		r.told[line] = true
		_, _ = io.WriteString(r.out, line+"\n")
	}
}

// do runs the plan to its digest or error.
func (r *run) do(ctx context.Context) (string, error) {
	if err := r.start(ctx); err != nil {
		if ctx.Err() != nil {
			return "", r.leave(ctx)
		}
		return "", err
	}
	follow := r.follow(ctx)
	end, err := r.watch(ctx, follow)
	if end == nil {
		follow.stop()
		if ctx.Err() != nil {
			return "", r.leave(ctx)
		}
		r.remove(ctx)
		return "", err
	}
	follow.finish(ctx)
	r.collect(ctx)
	return r.judge(end)
}

// leave ends a canceled run.
func (r *run) leave(ctx context.Context) error {
	if !leaves(ctx) && (r.job != nil || r.created) {
		r.say("Stopping: deleting the Job")
		r.remove(ctx)
	}
	return canceled(ctx)
}

// watch returns when the build has ended, with how, or when it will not begin or ctx
// is done, with an error.
func (r *run) watch(ctx context.Context, follow *following) (*ending, error) {
	changes, stop := r.engine.objects.subscribe(r.job.Name)
	defer stop()
	var since time.Time
	var last cause
	for {
		v, err := r.look(ctx)
		if err != nil {
			return nil, err
		}
		r.report(v)
		follow.see(v.pod)
		if end := r.ended(v); end != nil {
			return end, nil
		}
		h := v.held()
		if h.cause != last || since.IsZero() {
			last, since = h.cause, time.Now()
		}
		left := r.engine.cfg.Waits.allowed(h.cause) - time.Since(since)
		if left <= 0 && h.cause != causeNone {
			if left, err = r.overdue(ctx, v, h, time.Since(since)); err != nil {
				return nil, err
			}
		}
		if err := sleep(ctx, changes, left, h.cause); err != nil {
			return nil, err
		}
	}
}

// sleep returns after a change, or when the cause has lasted too long.
func sleep(ctx context.Context, changes <-chan struct{}, left time.Duration, c cause) error {
	var late <-chan time.Time
	if c != causeNone {
		timer := time.NewTimer(left)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-ctx.Done():
		return canceled(ctx)
	case <-changes:
	case <-late:
	}
	return nil
}

// overdue decides about a build that was held up for too long: how much longer it may
// be, or the error.
func (r *run) overdue(ctx context.Context, v view, h hold, waited time.Duration) (time.Duration, error) {
	if h.cause != causeNoPod {
		return 0, h.tooLong(v, r.plan, r.engine.cfg.Waits.allowed(h.cause))
	}
	if reason, message := r.engine.api.refusal(ctx, v.job.UID); reason != "" {
		return 0, refused(r.plan, reason, message)
	}
	// The controller may have much to do.
	if left := r.engine.cfg.Waits.Start - waited; left > 0 {
		return min(left, r.engine.cfg.Waits.Refused), nil
	}
	return 0, h.tooLong(v, r.plan, r.engine.cfg.Waits.Start)
}

// look returns what the cache has. That a Job is missing there proves nothing: the
// cache may be behind.
func (r *run) look(ctx context.Context) (view, error) {
	o := r.engine.objects
	v := view{pod: o.pod(r.job.UID)}
	if job := o.job(r.engine.cfg.Namespace, r.job.Name); job != nil && job.UID == r.job.UID {
		r.job, r.cached, v.job = job, true, job
		return v, nil
	}
	if !r.cached && v.pod == nil && time.Since(r.job.CreationTimestamp.Time) < r.engine.cfg.Waits.Settle {
		v.job = r.job
		return v, nil
	}
	job, err := r.engine.api.getJob(ctx, r.job.Name)
	switch {
	case apierrors.IsNotFound(err):
		return v, nil
	case err != nil:
		r.blind = true
		return v, apiError(ctx, "reading the Job", err)
	case job.UID == r.job.UID:
		r.job, v.job = job, job
	}
	return v, nil
}

// report tells of what has changed.
func (r *run) report(v view) {
	if v.pod == nil {
		return
	}
	if node := v.pod.Spec.NodeName; node != "" {
		r.say("Scheduled to node %s", node)
	}
	if s := status(v.pod, containerContext); s != nil && s.State.Waiting != nil && v.pod.Spec.NodeName != "" {
		r.say("Container %s: pulling %s where the node lacks it", containerContext, r.engine.cfg.ContextImage)
	}
	if begun(v.pod, containerContext) {
		r.say("Container %s started", containerContext)
	}
	if t := terminated(v.pod, containerContext); t != nil && t.ExitCode == 0 && !begun(v.pod, r.main) {
		r.say("Container %s: pulling %s where the node lacks it", r.main, r.image)
	}
	if begun(v.pod, r.main) {
		r.say("Container %s started", r.main)
		r.began(begunAt(v.pod, r.main))
	}
	switch h := v.held(); h.cause {
	case causeNode, causeImage, causeContainer:
		// Messages that count seconds must not fill the log.
		if key := "held " + h.reason; !r.told[key] {
			r.told[key] = true
			r.say("Waiting: %s", reasoned(h.reason, h.message))
		}
	default:
	}
}

// judge turns the ending into a digest or an error; the log is complete.
func (r *run) judge(end *ending) (string, error) {
	if end.exit == nil {
		return end.digest, end.err
	}
	if !r.log.Started() {
		// Nothing could be read: the end of it is in the status.
		r.log = kaniko.NewLog(r.out)
		_, _ = io.WriteString(r.log, end.exit.Message+"\n")
		r.log.Close()
	}
	return "", kaniko.Classify(kaniko.Outcome{
		ExitCode: int(end.exit.ExitCode), OOMKilled: end.exit.Reason == reasonOOMKilled,
		Limits: r.engine.cfg.limits(r.plan), Log: r.log,
	})
}

// following is a follower at work.
type following struct {
	run    *run
	cancel context.CancelFunc
	done   chan struct{}
	// pod is what the follower knows; changes has something after it changed.
	pod     atomic.Pointer[corev1.Pod]
	changes chan struct{}
}

// follow begins to copy the logs, as soon as see shows that there are some.
func (r *run) follow(ctx context.Context) *following {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &following{run: r, cancel: cancel, done: make(chan struct{}), changes: make(chan struct{}, 1)}
	f := &follower{logs: r.engine.logs, changes: w.changes, pod: w.pod.Load, containers: []string{containerContext, r.main}, out: func(container string) io.Writer {
		if container == r.main {
			return r.lines
		}
		return cleaning{r.out}
	}}
	go func() {
		defer close(w.done)
		f.run(ctx)
	}()
	return w
}

// see shows the follower the Pod, after everything was said of it that comes before its
// log.
func (w *following) see(pod *corev1.Pod) {
	w.pod.Store(pod)
	select {
	case w.changes <- struct{}{}:
	default:
		// It has not looked since the last change.
	}
}

// cleaning makes the lines of Kiln's own container harmless: they may repeat what a
// server said.
type cleaning struct{ w io.Writer }

// Write implements io.Writer; it gets whole lines, or pieces of very long ones.
func (c cleaning) Write(p []byte) (int, error) {
	_, _ = io.WriteString(c.w, kaniko.Clean(string(p))+"\n")
	return len(p), nil
}

// How long the rest of a log may take: after the end of its containers, and when they
// were ended in a way that may have taken the log with them.
const (
	logGrace     = 10 * time.Second
	lostLogGrace = time.Second
)

// finish waits for the end of the log.
func (w *following) finish(ctx context.Context) {
	grace := lostLogGrace
	if pod := w.pod.Load(); terminated(pod, w.run.main) != nil {
		grace = logGrace
	} else if t := terminated(pod, containerContext); t != nil && t.ExitCode != 0 {
		grace = logGrace
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	w.stop()
}

// stop ends it, and with it the executor's log.
func (w *following) stop() {
	w.cancel()
	<-w.done
	_ = w.run.lines.Close()
}
