package kube

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"kiln/builder"
	"kiln/builder/kaniko"
)

var update = flag.Bool("update", false, "rewrite golden files")

func testPlan() builder.Plan {
	id := strings.Repeat("0123456789abcdef", 4)
	return builder.Plan{
		BuildID: id, Attempt: 2, Dockerfile: "FROM python:3.12@sha256:" + id + "\nRUN true\n",
		Destination: "registry.example.com/team/func-demo-trainer:kiln-" + id,
		Target:      "registry.example.com/team/func-demo-trainer:latest",
		Platform:    "linux/amd64", Executor: builder.DefaultExecutor(),
		RequestID: "req-1", Project: "demo", Function: "trainer", Tag: "latest",
		Limits: builder.Limits{Timeout: 30 * time.Minute},
	}
}

func testConfig() Config {
	return Config{Namespace: "builds", ContextImage: "registry.example.com/kiln:v1", ExecutorImage: "ghcr.io/osscontainertools/kaniko:v1.27.5"}.withDefaults()
}

// everything is a plan that uses all that there is.
func everything() builder.Plan {
	p := testPlan()
	p.Platform = "linux/arm64/v8"
	p.Context = []builder.File{{Name: "requirements.txt", Data: []byte("pandas==2\n"), Mode: 0o644}}
	p.BuildArgs = []builder.Arg{{Name: "GIT_TOKEN", Value: "hush-arg", Secret: true}, {Name: "LEVEL", Value: "3"}}
	p.Secrets = []builder.Secret{{ID: "PIP_INDEX_URL", Value: "https://u:hush-pip@pypi.example.com/simple"}, {ID: "KEY", Value: "hush-key"}}
	p.Source = &builder.Source{URL: "git://user:hush-url@git.example.com/repo", Target: "/home/mlrun_code", Version: "git:4b825dc642cb6eb9a060e54bf8d69288fbee4904"}
	p.Verbose = true
	p.Limits = builder.Limits{Timeout: 90*time.Second + 1, Memory: 8 * gib, CPU: 1.5}
	p.Scheduling = builder.Scheduling{
		NodeName: "node-7", NodeSelector: map[string]string{"pool": "gpu", "zone": ""}, PriorityClass: "urgent", ServiceAccount: "builder",
		Affinity:    json.RawMessage(`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"In","values":["v"]}]}]}}}`),
		Tolerations: json.RawMessage(`[{"key":"gpu","operator":"Exists","effect":"NoSchedule"}]`),
	}
	return p
}

func everyOption() Config {
	c := testConfig()
	c.Instance, c.PullPolicy, c.PullSecrets = "blue", corev1.PullAlways, []string{"pull"}
	c.CredentialHelpers, c.SourceSettings = []string{"ecr"}, []byte("settings")
	c.Classes["big"] = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("12Gi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi")},
	}
	c.ProjectClasses = map[string]string{"demo": "big"}
	c.Zero = []string{"nvidia.com/gpu"}
	c.WorkspaceInMemory = true
	c.NodeSelector = map[string]string{"pool": "builds", "zone": "a"}
	c.Tolerations = []corev1.Toleration{{Key: "builds", Operator: corev1.TolerationOpExists}}
	c.PriorityClass, c.ServiceAccount, c.ServiceAccounts = "low", "builds", []string{"builder"}
	c.PodLabels = map[string]string{"azure.workload.identity/use": "true", labelBuild: "forged"}
	c.PodAnnotations = map[string]string{"sidecar.istio.io/inject": "false"}
	c.RuntimeClass, c.UserNamespaces = "gvisor", true
	return c
}

// plainReach is what anonymous users get.
func plainReach(t *testing.T) reach {
	t.Helper()
	return madeReach(t, kaniko.Options{})
}

// everyReach has logins of both kinds, certificates and a mirror.
func everyReach(t *testing.T) reach {
	t.Helper()
	return madeReach(t, kaniko.Options{CredentialHelpers: []string{"ecr"}, Registries: []builder.Access{
		{
			Host: "registry.example.com", CA: []byte("-----BEGIN CERTIFICATE-----\n"), ClientCert: []byte("cert"), ClientKey: []byte("hush-client-key"),
			Mirrors: []string{"mirror.example.com/hub"}, Login: builder.Login{Username: "robot", Password: "hush-password"},
		},
		{Host: "index.docker.io", Insecure: true, Login: builder.Login{IdentityToken: "hush-token"}},
	}})
}

func madeReach(t *testing.T, options kaniko.Options) reach {
	t.Helper()
	to, err := newReach(options)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestJobAndSecretAreAsRecorded(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		plan builder.Plan
		cfg  Config
		to   reach
	}{
		"plain":      {testPlan(), testConfig(), plainReach(t)},
		"everything": {everything(), everyOption(), everyReach(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job, err := newJob(tc.plan, tc.cfg, tc.to, "kiln-secret", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
			if err != nil {
				t.Fatal(err)
			}
			made := job.DeepCopy()
			made.UID = "uid-1"
			secret, err := newSecret(tc.plan, tc.cfg, tc.to, made)
			if err != nil {
				t.Fatal(err)
			}
			secret.StringData = map[string]string{}
			for key, value := range secret.Data {
				secret.StringData[key] = string(value)
			}
			secret.Data = nil
			got := toYAML(t, job) + "---\n" + toYAML(t, secret)
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
}

func toYAML(t *testing.T, object any) string {
	t.Helper()
	raw, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestJobHoldsNoSecret(t *testing.T) {
	t.Parallel()
	plan := everything()
	plan.Context = append(plan.Context, builder.File{Name: "big", Data: []byte(strings.Repeat("x", 256<<10))})
	job, err := newJob(plan, everyOption(), everyReach(t), "s", "")
	if err != nil {
		t.Fatal(err)
	}
	text := toYAML(t, job)
	if strings.Contains(text, "hush") {
		t.Errorf("a secret is in the Job:\n%s", text)
	}
	if len(text) > 32<<10 {
		t.Errorf("the Job has %d bytes: something of the context is in it", len(text))
	}
}

func TestDeadlineOfTheJobIsLaterThanKilns(t *testing.T) {
	t.Parallel()
	for _, timeout := range []time.Duration{time.Millisecond, time.Second, 90 * time.Second, 4 * time.Hour} {
		plan := testPlan()
		plan.Limits.Timeout = timeout
		job, err := newJob(plan, testConfig(), plainReach(t), "s", "")
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Duration(*job.Spec.ActiveDeadlineSeconds) * time.Second; got < timeout+5*time.Minute {
			t.Errorf("limit %s: deadline is %s", timeout, got)
		}
	}
}

func TestFunctionMayNotAskForWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*builder.Scheduling)
		says   string
	}{
		"service account":      {func(s *builder.Scheduling) { s.ServiceAccount = "admin" }, `spec.service_account: builds may not use "admin"`},
		"affinity":             {func(s *builder.Scheduling) { s.Affinity = json.RawMessage(`{"nodeAfinity":{}}`) }, "spec.affinity"},
		"affinity is a list":   {func(s *builder.Scheduling) { s.Affinity = json.RawMessage(`[]`) }, "spec.affinity"},
		"tolerations":          {func(s *builder.Scheduling) { s.Tolerations = json.RawMessage(`{"key":"x"}`) }, "spec.tolerations"},
		"tolerations, unknown": {func(s *builder.Scheduling) { s.Tolerations = json.RawMessage(`[{"kee":"x"}]`) }, "kee"},
	} {
		plan := testPlan()
		tc.change(&plan.Scheduling)
		_, err := newJob(plan, testConfig(), plainReach(t), "s", "")
		if err == nil || builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want invalid_request with %q", name, err, tc.says)
		}
	}
}

func TestSecretThatIsTooLargeIsRefusedWithItsSize(t *testing.T) {
	t.Parallel()
	plan := testPlan()
	plan.Context = []builder.File{{Name: "a", Data: make([]byte, 900<<10)}}
	_, err := newSecret(plan, testConfig(), plainReach(t), &batchv1.Job{})
	if err == nil || builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "1024") {
		t.Errorf("got %v, want invalid_request with the limit", err)
	}
}

func TestOtherContentOrDestinationIsAnotherBuild(t *testing.T) {
	t.Parallel()
	job, err := newJob(testPlan(), testConfig(), plainReach(t), "s", "")
	if err != nil {
		t.Fatal(err)
	}
	again := testPlan()
	again.Attempt, again.RequestID, again.Target = 9, "other", "other"
	if !sameBuild(job, again) {
		t.Error("another attempt is the same build")
	}
	sameStart := testPlan()
	sameStart.BuildID = sameStart.BuildID[:shortID] + strings.Repeat("f", 64-shortID)
	elsewhere := testPlan()
	elsewhere.Destination = "registry.example.com/other:kiln-" + elsewhere.BuildID
	if sameBuild(job, sameStart) || sameBuild(job, elsewhere) {
		t.Error("a different build id or destination is taken for the same build")
	}
}

func FuzzLabelValue(f *testing.F) {
	for _, seed := range []string{"", "demo", "-x-", strings.Repeat("a", 62) + "-.x", "Größe/1", "a\x00b\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if problems := validation.IsValidLabelValue(labelValue(text)); len(problems) > 0 {
			t.Errorf("labelValue(%q) = %q: %v", text, labelValue(text), problems)
		}
	})
}

func TestConfigurationFaultsAreNamed(t *testing.T) {
	t.Parallel()
	for says, change := range map[string]func(*Config){
		"namespace":            func(c *Config) { c.Namespace = "Not A Name" },
		`instance "a b"`:       func(c *Config) { c.Instance = "a b" },
		"longer than 30":       func(c *Config) { c.Instance = strings.Repeat("a", 31) },
		"kiln's own image":     func(c *Config) { c.ContextImage = "" },
		"executor image":       func(c *Config) { c.ExecutorImage = "" },
		"node selector":        func(c *Config) { c.NodeSelector = map[string]string{"a b": "c"} },
		"Pod label":            func(c *Config) { c.PodLabels = map[string]string{"a": "b c"} },
		"Pod annotation":       func(c *Config) { c.PodAnnotations = map[string]string{"a b": "c"} },
		"service account":      func(c *Config) { c.ServiceAccounts = []string{"A/B"} },
		`"huge", which is not`: func(c *Config) { c.ProjectClasses = map[string]string{"p": "huge"} },
		"must not be negative": func(c *Config) { c.Waits.Image = -1 },
		"requests more memory (2Gi": func(c *Config) {
			c.Classes["x"] = corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("2Gi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			}
		},
	} {
		cfg := testConfig()
		change(&cfg)
		if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want a fault with %q", err, says)
		}
	}
	for name, cfg := range map[string]Config{"default": testConfig(), "everything": everyOption()} {
		if err := cfg.validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLimitsOfThePlanReplaceThoseOfTheClass(t *testing.T) {
	t.Parallel()
	plan := testPlan()
	plan.Limits.Memory = gib / 2
	r := testConfig().resources(plan)
	if got := fmt.Sprint(r.Requests.Memory(), r.Limits.Memory(), r.Limits.StorageEphemeral()); got != "512Mi 512Mi 20Gi" {
		t.Errorf("memory request and limit, disk limit: %s", got)
	}
	if l := testConfig().limits(testPlan()); l.Memory != 4*gib || l.Disk != 20*gib || l.Timeout != 30*time.Minute {
		t.Errorf("limits = %+v", l)
	}
	if plan.Limits.Timeout = 0; testConfig().limits(plan).Timeout != time.Hour {
		t.Error("a plan without a limit has the default one")
	}
}
