package kube

import (
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	"kiln/builder"
)

func TestAnotherWorkerFinishesWhatOneLeft(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cause error
		kind  builder.Kind
		// away is how long nobody looks.
		away time.Duration
	}{
		"in the middle, after a shutdown":   {builder.ErrShutdown, builder.KindInterrupted, 10 * time.Second},
		"in the middle, after a lost lease": {builder.ErrLeaseLost, builder.KindLeaseLost, 10 * time.Second},
		"when it has ended already":         {builder.ErrShutdown, builder.KindInterrupted, 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				executors, mu := 0, sync.Mutex{}
				c := newTestCluster(t, slow(&executors, &mu))
				first, second := c.engine(t, testConfig()), c.engine(t, testConfig())
				plan := testPlan()
				if err := endAfter(t, first, plan, 5*time.Second, tc.cause); builder.KindOf(err) != tc.kind {
					t.Fatalf("first worker: %v, want %s", err, tc.kind)
				}
				time.Sleep(tc.away)
				// The ledger counts a new attempt.
				plan.Attempt++
				var logs strings.Builder
				result, err := second.Run(t.Context(), plan, &logs)
				if err != nil || result.Digest != someDigest || executors != 1 {
					t.Errorf("second worker: %+v, %v with %d executors\n%s", result, err, executors, logs.String())
				}
				if !strings.Contains(logs.String(), "Joined the Job builds/kiln-0123456789abcdef-2\n") ||
					!strings.Contains(logs.String(), "first line\nlast line\n") {
					t.Errorf("the second worker's log is not the whole log:\n%s", logs.String())
				}
				if left := c.left(t); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

func TestJobWithoutItsSecretGetsItFromWhoJoins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		executors, mu := 0, sync.Mutex{}
		c := newTestCluster(t, slow(&executors, &mu))
		job, err := newJob(testPlan(), testConfig(), plainReach(t), "its-secret", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.client.BatchV1().Jobs(job.Namespace).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		e := c.engine(t, testConfig())
		if result, err := e.Run(t.Context(), testPlan(), io.Discard); err != nil || result.Digest != someDigest || executors != 1 {
			t.Errorf("Run = %+v, %v with %d executors", result, err, executors)
		}
	})
}

func TestCollectedBuildRunsAgainWhenItIsAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		executors, mu := 0, sync.Mutex{}
		c := newTestCluster(t, slow(&executors, &mu))
		e, plan := c.engine(t, testConfig()), testPlan()
		for want := range 3 {
			if _, err := e.Run(t.Context(), plan, io.Discard); err != nil || executors != want+1 {
				t.Fatalf("run %d: %v with %d executors", want+1, err, executors)
			}
			plan.Attempt += want % 2
		}
	})
}

func TestJobOfAnotherBuildIsNotTouched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		executors, mu := 0, sync.Mutex{}
		c := newTestCluster(t, slow(&executors, &mu))
		other := testPlan()
		other.Destination = "registry.example.com/other:x"
		job, err := newJob(other, testConfig(), plainReach(t), "s", "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.client.BatchV1().Jobs(job.Namespace).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		_, err = c.engine(t, testConfig()).Run(t.Context(), testPlan(), io.Discard)
		if builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(err.Error(), "of another build") {
			t.Errorf("got %v, want unavailable", err)
		}
		if left := strings.Join(c.left(t), " "); !strings.Contains(left, job.Name) || executors != 0 {
			t.Errorf("the other build's Job is gone: %s", left)
		}
	})
}

func TestCreateThatSucceededAndReportedAnErrorIsOneBuild(t *testing.T) {
	t.Parallel()
	for _, resource := range []string{"jobs", "secrets"} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				executors, mu := 0, sync.Mutex{}
				c := newTestCluster(t, slow(&executors, &mu))
				times := 1
				c.client.PrependReactor("create", resource, func(a k8stesting.Action) (bool, runtime.Object, error) {
					if times--; times < 0 {
						return false, nil, nil
					}
					object := a.(k8stesting.CreateAction).GetObject() //nolint:forcetypeassert // a create
					_, _, _ = c.createJob(a)
					if err := c.client.Tracker().Add(object); err != nil {
						return true, nil, err
					}
					return true, nil, apierrors.NewTimeoutError("etcd took too long", 1)
				})
				result, err := c.engine(t, testConfig()).Run(t.Context(), testPlan(), io.Discard)
				if err != nil || result.Digest != someDigest || executors != 1 {
					t.Errorf("Run = %+v, %v with %d executors", result, err, executors)
				}
				if left := c.left(t); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}
