package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	k8stesting "k8s.io/client-go/testing"

	"kiln/builder"
)

// slow plays a build of one minute, and counts how many executors ran.
func slow(executors *int, mu *sync.Mutex) script {
	return func(ctx context.Context, p *fakePod) {
		if _, ok := p.prepare(ctx); !ok {
			return
		}
		mu.Lock()
		*executors++
		mu.Unlock()
		p.log(containerKaniko, "first line\n")
		pass(ctx, time.Minute)
		if ctx.Err() == nil {
			p.log(containerKaniko, "last line\n")
			p.exit(containerKaniko, 0, "Completed", someDigest)
			p.jobEnds(batchv1.JobComplete, "", "")
		}
	}
}

// endAfter runs the plan and cancels it after a while.
func endAfter(t *testing.T, e *Engine, plan builder.Plan, d time.Duration, cause error) error {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer time.AfterFunc(d, func() { cancel(cause) }).Stop()
	_, err := e.Run(ctx, plan, io.Discard)
	return err
}

func TestCancelWaitsForThePodToEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ended time.Time
		c := newTestCluster(t, func(ctx context.Context, p *fakePod) {
			if _, ok := p.prepare(ctx); ok {
				<-ctx.Done()
				time.Sleep(5 * time.Second)
				ended = time.Now()
			}
		})
		err := endAfter(t, c.engine(t, testConfig()), testPlan(), time.Minute, nil)
		if builder.KindOf(err) != builder.KindCanceled || ended.IsZero() {
			t.Errorf("got %v; the Pod ended at %v", err, ended)
		}
		if left := c.left(t); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestCancelDoesNotWaitForeverForALostNode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, func(ctx context.Context, p *fakePod) {
			if _, ok := p.prepare(ctx); ok {
				<-ctx.Done()
				time.Sleep(time.Hour)
			}
		})
		began := time.Now()
		err := endAfter(t, c.engine(t, testConfig()), testPlan(), time.Minute, nil)
		if took := time.Since(began); builder.KindOf(err) != builder.KindCanceled || took > time.Minute+30*time.Second {
			t.Errorf("got %v after %s", err, took)
		}
	})
}

func TestJobThatIsBeingDeletedIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		c := newTestCluster(t, func(ctx context.Context, p *fakePod) {
			if _, ok := p.prepare(ctx); !ok {
				return
			}
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			pass(ctx, time.Minute)
			time.Sleep(5 * time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			if ctx.Err() == nil {
				p.exit(containerKaniko, 0, "Completed", someDigest)
			}
		})
		first, second := c.engine(t, testConfig()), c.engine(t, testConfig())
		var canceling sync.WaitGroup
		canceling.Go(func() { _ = endAfter(t, first, testPlan(), 10*time.Second, nil) })
		time.Sleep(12 * time.Second)
		result, err := second.Run(t.Context(), testPlan(), io.Discard)
		canceling.Wait()
		if err != nil || result.Digest != someDigest || most != 1 {
			t.Errorf("Run = %+v, %v; %d executors at a time", result, err, most)
		}
	})
}

func TestWatchesThatExpireAreListedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		executors, mu := 0, sync.Mutex{}
		c := newTestCluster(t, slow(&executors, &mu))
		var served atomic.Int32
		var broken []*watch.FakeWatcher
		for _, resource := range []string{"jobs", "pods"} {
			w, times := watch.NewFakeWithChanSize(1, false), 1
			broken = append(broken, w)
			c.client.PrependWatchReactor(resource, func(k8stesting.Action) (bool, watch.Interface, error) {
				if times--; times < 0 {
					return false, nil, nil
				}
				served.Add(1)
				return true, w, nil
			})
		}
		e := c.engine(t, testConfig())
		time.AfterFunc(10*time.Second, func() {
			for _, w := range broken {
				gone := apierrors.NewResourceExpired("too old resource version").Status()
				w.Error(&gone)
			}
		})
		result, err := e.Run(t.Context(), testPlan(), io.Discard)
		if err != nil || result.Digest != someDigest || executors != 1 || served.Load() != 2 {
			t.Errorf("Run = %+v, %v with %d executors and %d broken watches", result, err, executors, served.Load())
		}
	})
}

func TestManyBuildsShareTheInformersAndCallLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const builds = 50
		executors, mu := 0, sync.Mutex{}
		c := newTestCluster(t, slow(&executors, &mu))
		e := c.engine(t, testConfig())
		var all sync.WaitGroup
		for i := range builds {
			all.Go(func() {
				plan := testPlan()
				plan.BuildID = fmt.Sprintf("%016x%048x", i+1, 0)
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				if _, err := e.Run(t.Context(), plan, io.Discard); err != nil {
					t.Errorf("build %d: %v", i, err)
				}
			})
		}
		all.Wait()
		calls := c.calls()
		t.Logf("calls of %d builds: %v; logs opened %d times", builds, calls, c.logs.opened)
		for call, most := range map[string]int{
			"list jobs": 1, "watch jobs": 1, "list pods": 1, "watch pods": 1, "get jobs": 0, "list events": 0,
			"create jobs": builds, "create secrets": builds, "delete jobs": builds,
		} {
			if calls[call] > most {
				t.Errorf("%s: %d calls, want at most %d", call, calls[call], most)
			}
		}
	})
}

func TestSweepTakesWhatNobodyCollects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		never := func(context.Context, *fakePod) {}
		c := newTestCluster(t, never)
		cfg := testConfig()
		made := func(attempt int) {
			plan := testPlan()
			plan.Attempt = attempt
			job, err := newJob(plan, cfg, plainReach(t), "s", "")
			if err == nil {
				_, err = c.client.BatchV1().Jobs(job.Namespace).Create(t.Context(), job, metav1.CreateOptions{})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		made(1)
		c.engine(t, cfg)
		time.Sleep(30 * time.Minute)
		made(2)
		time.Sleep(24 * time.Minute)
		synctest.Wait()
		if left := strings.Join(c.left(t), " "); left != "job kiln-0123456789abcdef-1 job kiln-0123456789abcdef-2" {
			t.Fatalf("before their time: %s", left)
		}
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		if left := strings.Join(c.left(t), " "); left != "job kiln-0123456789abcdef-2" {
			t.Errorf("after the first one's time: %s", left)
		}
	})
}

// registries is a Registries that remembers what it was asked for.
type registries struct {
	asked []string
	err   error
}

func (r *registries) Access(_ context.Context, host, secret string) (builder.Access, error) {
	r.asked = append(r.asked, secret+"@"+host)
	return builder.Access{Host: host, Login: builder.Login{Username: "robot", Password: "hush"}}, r.err
}

func TestBuildGetsTheCredentialsOfItsRegistriesOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		executors := 0
		var login []byte
		c := newTestCluster(t, started(func(p *fakePod) {
			executors++
			if object, err := p.cluster.client.Tracker().Get(secretsGVR, p.job.Namespace, secretName(p.job)); err == nil {
				login = object.(*corev1.Secret).Data[envKey("DOCKER_AUTH_CONFIG")] //nolint:forcetypeassert // a Secret
			}
			p.exit(containerKaniko, 0, "Completed", someDigest)
		}))
		cfg, known := testConfig(), &registries{}
		cfg.Registries = known
		plan := testPlan()
		plan.RegistrySecret = "team"
		e := c.engine(t, cfg)
		if _, err := e.Run(t.Context(), plan, io.Discard); err != nil {
			t.Fatal(err)
		}
		want := []string{"team@registry.example.com", "team@index.docker.io"}
		if diff := cmp.Diff(want, known.asked); diff != "" {
			t.Errorf("asked for (-want +got):\n%s", diff)
		}
		if !strings.Contains(string(login), `"registry.example.com":{"auth":"`) {
			t.Errorf("the executor gets %s", login)
		}
		known.err = builder.Errorf(builder.KindInvalidRequest, "reading credentials", "there is no secret team")
		if _, err := e.Run(t.Context(), plan, io.Discard); !errors.Is(err, known.err) || executors != 1 {
			t.Errorf("got %v, want the error of the registries", err)
		}
		if left := c.left(t); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestTraceGoesIntoTheJob(t *testing.T) {
	t.Parallel()
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	if got := traceparent(trace.ContextWithSpanContext(t.Context(), span)); got != "00-01000000000000000000000000000000-0200000000000000-01" {
		t.Errorf("traceparent = %q", got)
	}
	if got := traceparent(t.Context()); got != "" {
		t.Errorf("traceparent without a trace = %q", got)
	}
}

func TestClosedEngineRunsNothing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, build)
	e := c.engine(t, testConfig())
	if err := errors.Join(e.Close(), e.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Run(t.Context(), testPlan(), io.Discard); builder.KindOf(err) != builder.KindInterrupted {
		t.Errorf("Run = %v, want interrupted", err)
	}
}

func TestMissingPermissionIsNamedAtTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, build)
		for _, verb := range []string{"list", "watch"} {
			refuse(c, verb, "pods", -1, apierrors.NewForbidden(podsGVR.GroupResource(), "", errors.New("RBAC says no")))
		}
		c.client.PrependWatchReactor("pods", func(k8stesting.Action) (bool, watch.Interface, error) {
			return true, nil, apierrors.NewForbidden(podsGVR.GroupResource(), "", errors.New("RBAC says no"))
		})
		_, err := newEngine(t.Context(), c.client, c.logs, testConfig())
		if err == nil || !strings.Contains(err.Error(), "builds") || !strings.Contains(err.Error(), "RBAC says no") {
			t.Errorf("New = %v, want the namespace and the reason", err)
		}
	})
}
