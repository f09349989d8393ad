package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/builder/run/launcher"
	"kiln/builder/run/runtest"
)

// entrypoints has the suite's image.
type entrypoints struct{}

func (entrypoints) Entrypoint(context.Context, string, string) ([]string, error) {
	return runtest.Entrypoint(), nil
}

func runnerConfig() RunnerConfig {
	return RunnerConfig{Entrypoints: entrypoints{}, Config: Config{Namespace: "runs", ContextImage: "registry.example.com/kiln:v1"}}
}

func (c *testCluster) runner(t *testing.T, cfg RunnerConfig) *Runner {
	t.Helper()
	r, err := newRunner(t.Context(), c.client, c.logs, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

const probeImage = "registry.example.com/probe@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestRunnerConforms(t *testing.T) {
	t.Parallel()
	runtest.Run(t, func(t *testing.T) runtest.Harness {
		t.Helper()
		c := newTestCluster(t, probe)
		return runtest.Harness{
			Runner: c.runner(t, runnerConfig()), Another: func(t *testing.T) runs.Runner { t.Helper(); return c.runner(t, runnerConfig()) },
			Image: probeImage, MaxResults: 3800, LosesLogs: true, Leftovers: func() []string { return c.left(t) },
		}
	})
}

// prepareRun waits for the Secret as kubelet does, plays the container "context" and
// returns what the process gets.
func (p *fakePod) prepareRun(ctx context.Context) (plan runs.Plan, spec launcher.Spec, ok bool) {
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
			return plan, spec, false
		case <-time.After(time.Millisecond):
		}
	}
	p.running(containerContext)
	var d runDocument
	if err := json.Unmarshal(secret.Data[keyPlan], &d); err != nil {
		p.exit(containerContext, 1, "Error", err.Error())
		return plan, spec, false
	}
	p.exit(containerContext, 0, "Completed", "")
	p.running(containerRun)
	return guestPlan(p.job.Spec.Template.Spec.Containers[0], secret, d), d.Launcher, true
}

// guestPlan is what of a plan reaches its process, read back as kubelet does.
func guestPlan(main corev1.Container, secret *corev1.Secret, d runDocument) runs.Plan {
	plan := runs.Plan{Workdir: main.WorkingDir}
	for _, f := range d.Launcher.Files {
		plan.Files = append(plan.Files, runs.File(f))
	}
	for _, v := range main.Env {
		value := strings.ReplaceAll(v.Value, "$$", "$")
		if v.ValueFrom != nil {
			value = string(secret.Data[v.ValueFrom.SecretKeyRef.Key])
		}
		plan.Env = append(plan.Env, runs.Var{Name: v.Name, Value: value})
	}
	return plan
}

// probe plays a run of the suite.
func probe(ctx context.Context, p *fakePod) {
	plan, spec, ok := p.prepareRun(ctx)
	if !ok {
		return
	}
	started := time.Now().UTC()
	report := runtest.Probe(ctx, plan, spec, p.file(containerRun))
	report.Started, report.Finished = started, time.Now().UTC()
	if ctx.Err() != nil {
		return
	}
	p.reports(report, spec.MaxReport)
}

// reports ends the process as the launcher does.
func (p *fakePod) reports(report launcher.Report, most int) {
	code, reason := int32(report.ExitCode), "Completed"
	if report.Failure != "" {
		code = 127
	}
	if code != 0 {
		reason = "Error"
	}
	p.exit(containerRun, code, reason, string(report.Encode(most)))
	if code == 0 {
		p.jobEnds(batchv1.JobComplete, "", "")
	} else {
		p.jobEnds(batchv1.JobFailed, batchv1.JobReasonBackoffLimitExceeded, "")
	}
}

// TestReasonsOfFailures plays what a cluster does to a run, and what becomes of it.
func TestRunsEndByWhatTheClusterSays(t *testing.T) {
	t.Parallel()
	after := func(then func(*fakePod)) script {
		return func(ctx context.Context, p *fakePod) {
			if _, _, ok := p.prepareRun(ctx); ok {
				then(p)
			}
		}
	}
	for name, tc := range map[string]struct {
		play script
		kind builder.Kind
		text string
	}{
		"out of memory":       {after(func(p *fakePod) { p.exit(containerRun, 137, reasonOOMKilled, "") }), builder.KindOutOfMemory, "OOMKilled"},
		"a lost launcher":     {after(func(p *fakePod) { p.exit(containerRun, 137, "Error", "") }), builder.KindUnavailable, "137"},
		"evicted by its disk": {after(func(p *fakePod) { p.failed(reasonEvicted, "Usage of EmptyDir volume exceeds the limit") }), builder.KindDiskFull, "EmptyDir"},
		"a drained node":      {after(func(p *fakePod) { p.disrupted("DeletionByTaintManager", "taint") }), builder.KindUnavailable, "taint"},
		"an image that cannot be pulled": {func(_ context.Context, p *fakePod) {
			p.scheduled()
			p.exit(containerContext, 0, "Completed", "")
			p.waiting(containerRun, "ImagePullBackOff", "not found")
		}, builder.KindUnavailable, "ImagePullBackOff"},
		"no node": {func(_ context.Context, p *fakePod) { p.pending("SchedulerError", "0/3 nodes") }, builder.KindUnavailable, "0/3 nodes"},
		"a source that is missing": {func(_ context.Context, p *fakePod) {
			p.scheduled()
			p.exit(containerContext, 1, "Error", string(Failure(builder.Errorf(builder.KindSourceNotFound, "fetching the source", "no such branch"))))
		}, builder.KindSourceNotFound, "no such branch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, tc.play)
				r, err := newRunner(t.Context(), c.client, c.logs, runnerConfig())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = r.Close() }()
				plan := runtest.NewPlan(probeImage, t.Name())
				for range 2 {
					_, err := r.Run(t.Context(), plan, runs.Watch{})
					if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.text) {
						t.Errorf("got %v (%s), want %s with %q", err, builder.KindOf(err), tc.kind, tc.text)
					}
				}
				if n := c.calls()["create jobs"]; n != 1 {
					t.Errorf("%d Jobs were made", n)
				}
			})
		})
	}
}

func TestSilentAPIServerIsNoReasonForAnotherAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, probe)
		silent := map[string]*atomic.Bool{"patch": {}, "get": {}}
		for verb, flag := range silent {
			c.client.PrependReactor(verb, "jobs", func(k8stesting.Action) (bool, runtime.Object, error) {
				return flag.Load(), nil, apierrors.NewInternalError(errors.New("no leader"))
			})
		}
		// It takes no changes.
		silent["patch"].Store(true)
		r, err := newRunner(t.Context(), c.client, c.logs, runnerConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		plan := runtest.NewPlan(probeImage, t.Name(), "wait")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := r.Run(ctx, plan, runs.Watch{Started: func(time.Time) { cancel() }})
			done <- err
		}()
		if err := <-done; builder.KindOf(err) != builder.KindInterrupted {
			t.Errorf("got %v, want interrupted", err)
		}
		// Nor does it answer.
		silent["get"].Store(true)
		if _, err := r.Run(t.Context(), plan, runs.Watch{}); builder.KindOf(err) != builder.KindInterrupted {
			t.Errorf("got %v, want interrupted", err)
		}
		silent["get"].Store(false)
		silent["patch"].Store(false)
		if _, err := r.Run(ctx, plan, runs.Watch{}); builder.KindOf(err) != builder.KindCanceled {
			t.Errorf("got %v, want canceled", err)
		}
	})
}

func TestResultsThatKubernetesCannotPassOnAreNoted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, probe)
	log := &runtest.Log{}
	plan := runtest.NewPlan(probeImage, t.Name(), "results", fmt.Sprintf(`{"a":%q}`, strings.Repeat("x", 5000)))
	r, err := c.runner(t, runnerConfig()).Run(t.Context(), plan, runs.Watch{Logs: log})
	if err != nil || r.Results != nil || !strings.Contains(log.String(), "the results of 5008 bytes are longer") {
		t.Errorf("result %+v, error %v, log:\n%s", r, err, log)
	}
}

// runOfEverything is a plan that uses all that there is.
func runOfEverything() runs.Plan {
	p := runtest.NewPlan(probeImage, "everything", "out", "$(id)")
	p.Attempt, p.RegistrySecret, p.Workdir = 3, "team-pull", "/home/mlrun_code/sub"
	p.Env = []runs.Var{{Name: "A", Value: "$(PATH) $$ $x"}, {Name: "B", Value: ""}}
	p.Secrets = []runs.Var{{Name: "TOKEN", Value: "hush-token"}}
	p.Files = []runs.File{{Path: launcher.Out + "/function/main.py", Data: []byte("print(1)"), Mode: 0o644}}
	p.Source = &builder.Source{URL: "git://user:hush-url@git.example.com/repo", Target: "/home/mlrun_code", Version: "git:4b825dc6"}
	p.SourceEnv = map[string]string{"GIT_TOKEN": "hush-git"}
	p.Limits = builder.Limits{Timeout: 90 * time.Second, Memory: 8 * gib, CPU: 1.5}
	p.GPUs = map[string]int64{"nvidia.com/gpu": 2}
	p.Scheduling = builder.Scheduling{
		NodeSelector: map[string]string{"pool": "gpu"}, PriorityClass: "urgent", ServiceAccount: "trainer",
		Affinity: json.RawMessage(`{"podAntiAffinity":{}}`), Tolerations: json.RawMessage(`[{"key":"gpu","operator":"Exists"}]`),
	}
	p.Labels = map[string]string{"owner": "ann <&>"}
	p.Project, p.Function, p.Name = "demo", "trainer", "trainer-train"
	return p
}

func TestRunJobIsThatOfTheGoldenFile(t *testing.T) {
	t.Parallel()
	cfg := runnerConfig().Config
	cfg.component, cfg.ExecutorImage = "run", cfg.ContextImage
	cfg.ServiceAccounts, cfg.PullSecrets, cfg.UserNamespaces = []string{"trainer"}, []string{"kiln-pull"}, true
	cfg.Zero = []string{"nvidia.com/gpu"}
	cfg = cfg.withDefaults()
	plan := runOfEverything()
	job, err := newRunJob(plan, cfg, "the-secret", "")
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "run.yaml")
	if *update {
		if err := os.WriteFile(golden, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Errorf("Job (-want +got):\n%s", diff)
	}
	raw, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "hush") {
		t.Error("the Job holds a secret")
	}
	spec := runs.LauncherSpec(plan, nil)
	secret, err := newRunSecret(plan, cfg, spec, job)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range secret.Data {
		if key == keyPlan && (strings.Contains(string(value), "hush-token") || strings.Contains(string(value), "hush-git")) {
			t.Error("the document holds a value that has a key of its own")
		}
	}
	plan.Scheduling.ServiceAccount = "admin"
	if _, err := newRunJob(plan, cfg, "the-secret", ""); builder.KindOf(err) != builder.KindInvalidRequest {
		t.Errorf("a service account that nobody allowed: %v", err)
	}
	plan = runOfEverything()
	plan.Files[0].Data = make([]byte, 1<<20)
	if _, err := newRunSecret(plan, cfg, runs.LauncherSpec(plan, nil), job); builder.KindOf(err) != builder.KindInvalidRequest {
		t.Errorf("a plan of more than 1 MiB: %v", err)
	}
}

func TestPrepareRunWritesWhatTheContainerNeeds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "kiln-init")
	if err := os.WriteFile(program, []byte("#!launcher"), 0o600); err != nil {
		t.Fatal(err)
	}
	plan := runOfEverything()
	cfg := testConfig()
	job, err := newRunJob(runtest.NewPlan(probeImage, "x"), cfg, "the-secret", "")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := newRunSecret(plan, cfg, runs.LauncherSpec(plan, nil), job)
	if err != nil {
		t.Fatal(err)
	}
	from, workspace, sources := openRoot(t, t.TempDir()), openRoot(t, t.TempDir()), &fetcher{}
	for key, value := range secret.Data {
		if err := from.WriteFile(key, value, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	if err := PrepareRun(t.Context(), from, workspace, program, sources.open, &log); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, name := range []string{"kiln/init", "kiln/out", "kiln/spec.json", "source", "source/env"} {
		info, err := workspace.Stat(name)
		if err != nil {
			t.Error(err)
			continue
		}
		got[name] = info.Mode().String()
	}
	want := map[string]string{"kiln/init": "-rwxr-xr-x", "kiln/out": "drwxrwxrwx", "kiln/spec.json": "-rw-r--r--", "source": "drwxrwxrwx", "source/env": "-rw-r--r--"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if strings.Contains(log.String(), "hush") {
		t.Errorf("the log holds a secret:\n%s", &log)
	}
	if err := PrepareRun(t.Context(), from, workspace, filepath.Join(dir, "nope"), sources.open, &log); builder.KindOf(err) != builder.KindUnavailable {
		t.Errorf("without a launcher: %v", err)
	}
}
