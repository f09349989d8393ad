//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kiln/builder/kube/kubetest"
	runs "kiln/builder/run"
	"kiln/builder/run/runtest"
)

// runner returns a Runner that has the worker's Role.
func (c *team) runner(t *testing.T, cfg Config) *Runner {
	t.Helper()
	r, err := NewRunner(t.Context(), c.worker, RunnerConfig{Config: cfg, Entrypoints: entrypoints{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// An API server, its controllers and its scheduler are real; the node plays.
func TestRunnerConformsOnARealAPIServer(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	team := newTeam(t, c, nil)
	newScriptedKubelet(t, c, "runs")
	runtest.Run(t, func(t *testing.T) runtest.Harness {
		t.Helper()
		cfg := team.config("runs")
		return runtest.Harness{
			Runner: team.runner(t, cfg), Another: func(t *testing.T) runs.Runner { t.Helper(); return team.runner(t, cfg) },
			Image: probeImage, MaxResults: 3800, LosesLogs: true, Leftovers: func() []string { return team.left(cfg) },
		}
	})
}

// function plays a run of the suite.
func (p *scriptedPod) function(ctx context.Context) {
	p.status = corev1.PodStatus{Phase: corev1.PodPending, StartTime: new(metav1.Now())}
	p.set(containerRun, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}})
	var d runDocument
	var secret *corev1.Secret
	for secret == nil {
		found, err := p.kubelet.client.CoreV1().Secrets(p.pod.Namespace).Get(ctx, p.pod.Spec.Volumes[0].Secret.SecretName, metav1.GetOptions{})
		if err == nil && json.Unmarshal(found.Data[keyPlan], &d) == nil {
			secret = found
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	p.start(containerContext)
	p.end(containerContext, 0, "Completed", "")
	p.status.Phase = corev1.PodRunning
	log := p.start(containerRun)
	started := time.Now().UTC()
	report := runtest.Probe(ctx, guestPlan(p.pod.Spec.Containers[0], secret, d), d.Launcher, log)
	report.Started, report.Finished = started, time.Now().UTC()
	code, reason := int32(report.ExitCode), "Completed"
	if report.Failure != "" {
		code = 127
	}
	if code != 0 {
		reason = "Error"
	}
	p.end(containerRun, code, reason, string(report.Encode(d.Launcher.MaxReport)))
}
