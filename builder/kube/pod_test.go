package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kiln/builder"
	"kiln/builder/enginetest"
)

// fakePod is a Job's Pod in the hands of a script.
type fakePod struct {
	cluster *testCluster
	job     *batchv1.Job
	pod     *corev1.Pod
}

// update changes the Pod, which it makes if there is none.
func (p *fakePod) update(change func(*corev1.Pod)) {
	// The fake's watches hold 100 changes and panic at the next: they must be read.
	time.Sleep(time.Millisecond)
	tracker := p.cluster.client.Tracker()
	if p.pod == nil {
		template := p.job.Spec.Template
		p.pod = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: p.name(), Namespace: p.job.Namespace, Labels: template.Labels, CreationTimestamp: metav1.Now(),
				UID:             types.UID("pod-of-" + string(p.job.UID)),
				OwnerReferences: []metav1.OwnerReference{{Kind: "Job", Name: p.job.Name, UID: p.job.UID, Controller: new(true)}},
			},
			Spec: template.Spec, Status: corev1.PodStatus{Phase: corev1.PodPending},
		}
		_ = tracker.Add(p.pod.DeepCopy())
	}
	change(p.pod)
	_ = tracker.Update(podsGVR, p.pod.DeepCopy(), p.pod.Namespace)
}

func (p *fakePod) remove() {
	if p.pod != nil {
		_ = p.cluster.client.Tracker().Delete(podsGVR, p.pod.Namespace, p.pod.Name)
	}
}

// main names the container that does the work.
func (p *fakePod) main() string { return p.job.Spec.Template.Spec.Containers[0].Name }

// pending makes the Pod wait for a node.
func (p *fakePod) pending(reason, message string) {
	p.update(func(pod *corev1.Pod) {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message}}
	})
}

// scheduled gives the Pod to a node, whose containers then wait.
func (p *fakePod) scheduled() {
	p.update(func(pod *corev1.Pod) {
		pod.Spec.NodeName = "node-1"
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	})
	p.waiting(containerContext, "PodInitializing", "")
	p.waiting(p.main(), "PodInitializing", "")
}

func (p *fakePod) state(container string, state corev1.ContainerState) {
	p.update(func(pod *corev1.Pod) {
		all := &pod.Status.ContainerStatuses
		if container == containerContext {
			all = &pod.Status.InitContainerStatuses
		}
		*all = []corev1.ContainerStatus{{Name: container, State: state}}
	})
}

func (p *fakePod) waiting(container, reason, message string) {
	p.state(container, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}})
}

func (p *fakePod) running(container string) {
	p.state(container, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
}

// exit ends a container and its log.
func (p *fakePod) exit(container string, code int32, reason, message string) {
	p.file(container).close()
	p.state(container, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}})
	if code != 0 {
		p.failed("", "")
	} else if container == p.main() {
		p.update(func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded })
	}
}

func (p *fakePod) failed(reason, message string) {
	p.update(func(pod *corev1.Pod) {
		pod.Status.Phase, pod.Status.Reason, pod.Status.Message = corev1.PodFailed, reason, message
	})
}

// disrupted is what comes before a Pod's deletion.
func (p *fakePod) disrupted(reason, message string) {
	p.update(func(pod *corev1.Pod) {
		pod.Status.Conditions = append(pod.Status.Conditions,
			corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message})
	})
}

// jobEnds sets a condition of the Job.
func (p *fakePod) jobEnds(kind batchv1.JobConditionType, reason, message string) {
	job := p.cluster.job(p.job.Namespace, p.job.Name)
	if job == nil || job.UID != p.job.UID {
		return
	}
	job = job.DeepCopy()
	job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{Type: kind, Status: corev1.ConditionTrue, Reason: reason, Message: message})
	_ = p.cluster.client.Tracker().Update(jobsGVR, job, job.Namespace)
}

// prepare waits for the Secret as kubelet does, plays the container "context" and
// returns what the Secret asks for.
func (p *fakePod) prepare(ctx context.Context) (builder.Plan, bool) {
	p.scheduled()
	var secret *corev1.Secret
	for secret == nil {
		object, err := p.cluster.client.Tracker().Get(secretsGVR, p.job.Namespace, secretName(p.job))
		if err == nil {
			secret, _ = object.(*corev1.Secret)
			continue
		}
		select {
		case <-ctx.Done():
			return builder.Plan{}, false
		case <-time.After(time.Millisecond):
		}
	}
	var d document
	if err := json.Unmarshal(secret.Data[keyPlan], &d); err != nil {
		p.exit(containerContext, 1, "Error", string(Failure(err)))
		return builder.Plan{}, false
	}
	p.running(containerContext)
	p.log(containerContext, "Wrote the Dockerfile\n")
	p.exit(containerContext, 0, "Completed", "")
	p.running(containerKaniko)
	return builder.Plan{BuildID: d.BuildID, Dockerfile: d.Dockerfile, Destination: p.job.Annotations[noteDestination]}, true
}

// build plays a whole build as enginetest.Play does, and speaks like the executor.
func build(ctx context.Context, p *fakePod) {
	plan, ok := p.prepare(ctx)
	if !ok {
		return
	}
	result, err := enginetest.Play()(ctx, plan, executorVoice{p.file(containerKaniko)})
	if ctx.Err() != nil {
		return
	}
	code, reason, message := executorEnd(result, err)
	if code == 0 {
		p.exit(containerKaniko, code, reason, message)
		p.jobEnds(batchv1.JobComplete, "", "")
		return
	}
	p.log(containerKaniko, message+"\n")
	p.exit(containerKaniko, code, reason, message)
	p.jobEnds(batchv1.JobFailed, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
}

// executorEnd is how the executor's container ends after what enginetest.Play returned;
// the message of a failure is the last line of the log too.
func executorEnd(result builder.Result, err error) (code int32, reason, message string) {
	if err == nil {
		return 0, "Completed", result.Digest
	}
	switch builder.KindOf(err) {
	case builder.KindCommandFailed:
		return 7, "Error", "error building image: error building stage: failed to execute command: waiting for process to exit: exit status 7"
	case builder.KindPushDenied:
		return 1, "Error", "error checking push permissions: POST http://registry/v2/: unexpected status code 403 Forbidden"
	default:
		return 1, "Error", "error pushing image: POST http://registry/v2/: unexpected status code 500 Internal Server Error"
	}
}

// executorVoice turns the lines of enginetest.Play into those of the executor.
type executorVoice struct{ out io.Writer }

func (v executorVoice) Write(text []byte) (int, error) {
	line := string(text)
	if strings.HasPrefix(line, "RUN ") {
		raw, err := json.Marshal(map[string]string{"level": "info", "msg": strings.TrimSpace(line), "time": "2026-01-02T03:04:05Z"})
		if err != nil {
			return 0, err
		}
		line = string(raw) + "\n"
	}
	_, err := io.WriteString(v.out, line)
	return len(text), err
}

func (p *fakePod) log(container, text string) { _, _ = io.WriteString(p.file(container), text) }

func (p *fakePod) file(container string) *logFile {
	return p.cluster.logs.file(p.name(), container)
}

// name is the Pod's: no two Jobs have the same.
func (p *fakePod) name() string { return p.job.Name + "-" + string(p.job.UID) }

// fakeLogs is a log endpoint that stamps, follows, starts at whole seconds, and breaks
// connections when it is told to.
type fakeLogs struct {
	mu    sync.Mutex
	files map[string]*logFile
	// breakAfter, when set, ends every stream after so many lines.
	breakAfter int
	opened     int
}

// logFile is the log of a container.
type logFile struct {
	mu     sync.Mutex
	lines  []string
	rest   string
	ended  bool
	change chan struct{}
}

func (l *fakeLogs) file(pod, container string) *logFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := pod + "/" + container
	if l.files[key] == nil {
		l.files[key] = &logFile{change: make(chan struct{})}
	}
	return l.files[key]
}

// Write implements io.Writer.
func (f *logFile) Write(text []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rest += string(text)
	for {
		line, rest, ok := strings.Cut(f.rest, "\n")
		if !ok {
			break
		}
		f.lines, f.rest = append(f.lines, time.Now().UTC().Format(time.RFC3339Nano)+" "+line+"\n"), rest
	}
	f.wake()
	return len(text), nil
}

func (f *logFile) wake() {
	close(f.change)
	f.change = make(chan struct{})
}

func (f *logFile) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rest != "" {
		f.lines, f.rest = append(f.lines, time.Now().UTC().Format(time.RFC3339Nano)+" "+f.rest), ""
	}
	f.ended = true
	f.wake()
}

// Stream implements logStreams.
func (l *fakeLogs) Stream(ctx context.Context, pod, container string, since time.Time) (io.ReadCloser, error) {
	l.mu.Lock()
	f, most := l.files[pod+"/"+container], l.breakAfter
	l.opened++
	l.mu.Unlock()
	if f == nil {
		return nil, fmt.Errorf("container %s of %s is waiting to start", container, pod)
	}
	r, w := io.Pipe()
	go func() {
		_ = w.CloseWithError(f.send(ctx, w, since.Truncate(time.Second), most))
	}()
	return r, nil
}

func (f *logFile) send(ctx context.Context, w io.Writer, since time.Time, most int) error {
	for next, sent := 0, 0; ; {
		f.mu.Lock()
		lines, ended, change := f.lines[next:], f.ended, f.change
		f.mu.Unlock()
		for _, line := range lines {
			next++
			stamp, _, _ := strings.Cut(line, " ")
			if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil && at.Before(since) {
				continue
			}
			if sent++; most > 0 && sent > most {
				// The connection breaks within a line.
				_, _ = io.WriteString(w, line[:len(line)/2])
				return io.ErrUnexpectedEOF
			}
			if _, err := io.WriteString(w, line); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}
