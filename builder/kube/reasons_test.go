package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8stesting "k8s.io/client-go/testing"

	"kiln/builder"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// event is what the Job controller says when it cannot make a Pod.
func event(p *fakePod, message string) {
	_ = p.cluster.client.Tracker().Add(&corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: p.job.Name, Namespace: p.job.Namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Job", Name: p.job.Name, UID: p.job.UID}, Reason: "FailedCreate", Message: message,
	})
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// started plays a build up to the executor.
func started(then func(*fakePod)) script {
	return func(ctx context.Context, p *fakePod) {
		if _, ok := p.prepare(ctx); ok {
			then(p)
		}
	}
}

func TestEveryReasonReachesTheUserAsCode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		plan   func(*builder.Plan)
		play   script
		kind   builder.Kind
		says   string
		within time.Duration
	}{
		"wrong image": {
			nil, func(ctx context.Context, p *fakePod) {
				p.scheduled()
				for ctx.Err() == nil {
					p.waiting(containerContext, "ErrImagePull", "kiln:v9: not found")
					pass(ctx, 10*time.Second)
					p.waiting(containerContext, "ImagePullBackOff", "Back-off pulling image kiln:v9")
					pass(ctx, 30*time.Second)
				}
			}, builder.KindUnavailable, "ImagePullBackOff: Back-off pulling image kiln:v9", time.Minute,
		},
		"container cannot be configured": {
			nil, func(_ context.Context, p *fakePod) {
				p.scheduled()
				p.waiting(containerContext, "CreateContainerConfigError", `secret "x" not found`)
			}, builder.KindUnavailable, `CreateContainerConfigError: secret "x" not found`, 30 * time.Second,
		},
		"full cluster": {
			nil, func(_ context.Context, p *fakePod) {
				p.pending("Unschedulable", "0/3 nodes are available: 3 Insufficient memory.")
			},
			builder.KindUnavailable, "Unschedulable: 0/3 nodes are available", 5 * time.Minute,
		},
		"nodes that do not exist": {
			func(p *builder.Plan) { p.Scheduling.NodeSelector = map[string]string{"pool": "moon"} },
			func(_ context.Context, p *fakePod) { p.pending("Unschedulable", "0/3 nodes are available") },
			builder.KindInvalidRequest, "Unschedulable: 0/3 nodes are available", 5 * time.Minute,
		},
		"quota": {
			nil, func(_ context.Context, p *fakePod) { event(p, `pods "x" is forbidden: exceeded quota: q`) },
			builder.KindUnavailable, "FailedCreate: pods \"x\" is forbidden: exceeded quota", 20 * time.Second,
		},
		"priority class that does not exist": {
			func(p *builder.Plan) { p.Scheduling.PriorityClass = "vip" },
			func(_ context.Context, p *fakePod) { event(p, `no PriorityClass with name vip was found`) },
			builder.KindInvalidRequest, "no PriorityClass with name vip", 20 * time.Second,
		},
		"service account that is not allowed": {
			func(p *builder.Plan) { p.Scheduling.ServiceAccount = "admin" }, nil, builder.KindInvalidRequest, "kube.service_accounts", 0,
		},
		"no Pod and no reason": {nil, func(context.Context, *fakePod) {}, builder.KindUnavailable, "nothing happened (for 15m0s)", 15*time.Minute + time.Second},
		"volume that cannot be mounted": {
			nil, func(_ context.Context, p *fakePod) { p.scheduled() }, builder.KindUnavailable, "PodInitializing (for 15m0s)", 15 * time.Minute,
		},
		"memory": {
			nil, started(func(p *fakePod) { p.exit(containerKaniko, 137, "OOMKilled", "") }), builder.KindOutOfMemory, "4 GiB", time.Second,
		},
		"memory of the preparation": {
			nil, func(_ context.Context, p *fakePod) {
				p.scheduled()
				p.exit(containerContext, 137, "OOMKilled", "")
			}, builder.KindOutOfMemory, "OOMKilled", time.Second,
		},
		"disk": {
			nil, started(func(p *fakePod) {
				p.failed("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 20Gi.")
			}),
			builder.KindDiskFull, "Evicted: Pod ephemeral local storage usage exceeds", time.Second,
		},
		"pressure on the node": {
			nil, started(func(p *fakePod) {
				p.disrupted("TerminationByKubelet", "The node was low on resource: memory.")
				p.failed("Evicted", "The node was low on resource: memory.")
			}), builder.KindUnavailable, "TerminationByKubelet: The node was low on resource: memory", time.Second,
		},
		"node that is lost": {
			nil, started(func(p *fakePod) {
				p.disrupted("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
			}),
			builder.KindUnavailable, "DeletionByTaintManager", time.Second,
		},
		"deadline of the Job": {
			nil, started(func(p *fakePod) {
				p.jobEnds(batchv1.JobFailed, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
			}),
			builder.KindTimeout, "DeadlineExceeded", time.Second,
		},
		"preparation fails": {
			nil, func(_ context.Context, p *fakePod) {
				p.scheduled()
				p.exit(containerContext, 1, "Error", string(Failure(builder.Errorf(builder.KindSourceNotFound, "fetching the source", "no branch x"))))
			}, builder.KindSourceNotFound, "fetching the source: no branch x", time.Second,
		},
		"executor that does not start": {
			nil, started(func(p *fakePod) { p.exit(containerKaniko, 128, "StartError", "exec /kaniko/executor: no such file") }),
			builder.KindUnavailable, "StartError: exec /kaniko/executor: no such file", time.Second,
		},
		"success without a digest": {
			nil, started(func(p *fakePod) { p.exit(containerKaniko, 0, "Completed", "sha256:short") }), builder.KindUnavailable, `left "sha256:short"`, time.Second,
		},
		"success of a Pod that is gone": {
			nil, started(func(p *fakePod) {
				p.remove()
				p.jobEnds(batchv1.JobComplete, "", "")
			}), builder.KindUnavailable, "its Pod is gone", 10 * time.Second,
		},
		"failure of a Pod that is gone": {
			nil, started(func(p *fakePod) {
				p.remove()
				p.jobEnds(batchv1.JobFailed, "PodFailurePolicy", "Pod builds/x has condition DisruptionTarget")
			}), builder.KindUnavailable, "PodFailurePolicy: Pod builds/x has condition DisruptionTarget", 10 * time.Second,
		},
		"Pod that the node refuses": {
			nil, func(_ context.Context, p *fakePod) {
				p.scheduled()
				p.update(func(pod *corev1.Pod) { pod.Status.InitContainerStatuses = nil })
				p.failed("OutOfcpu", "Node didn't have enough resource: cpu")
			}, builder.KindUnavailable, "OutOfcpu: Node didn't have enough resource", time.Second,
		},
		"Pod that somebody deletes": {
			nil, started(func(p *fakePod) { p.update(func(pod *corev1.Pod) { pod.DeletionTimestamp = new(metav1.Now()) }) }),
			builder.KindUnavailable, "deleting its Pod", 10 * time.Second,
		},
		"Job that somebody deletes": {
			nil, started(func(p *fakePod) { _ = p.cluster.client.Tracker().Delete(jobsGVR, p.job.Namespace, p.job.Name) }),
			builder.KindUnavailable, "somebody deleted it", time.Second,
		},
		"Job that somebody is deleting": {
			nil, started(func(p *fakePod) {
				job := p.cluster.job(p.job.Namespace, p.job.Name).DeepCopy()
				job.DeletionTimestamp = new(metav1.Now())
				_ = p.cluster.client.Tracker().Update(jobsGVR, job, job.Namespace)
			}), builder.KindUnavailable, "somebody is deleting it", time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, tc.play)
				e := c.engine(t, testConfig())
				plan := testPlan()
				if tc.plan != nil {
					tc.plan(&plan)
				}
				var logs strings.Builder
				began := time.Now()
				result, err := e.Run(t.Context(), plan, &logs)
				took := time.Since(began)
				if e, ok := errors.AsType[*builder.Error](err); !ok || e.Kind != tc.kind || !strings.Contains(err.Error(), tc.says) || result.Digest != "" {
					t.Errorf("got %s: %v (%+v)\nwant %s with %q\n%s", builder.KindOf(err), err, result, tc.kind, tc.says, logs.String())
				}
				if took > tc.within+5*time.Second {
					t.Errorf("took %s, want %s", took, tc.within)
				}
				if tc.within > time.Second && tc.within < 10*time.Minute && took < tc.within {
					t.Errorf("gave up after %s, want %s", took, tc.within)
				}
				if left := c.left(t); len(left) > 0 && !strings.Contains(strings.Join(left, " "), "pod ") {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

func TestLogSaysWhyNothingHappensYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, func(ctx context.Context, p *fakePod) {
			p.pending("Unschedulable", "0/3 nodes are available\nfor \x1b[31mreasons")
			time.Sleep(time.Minute)
			p.scheduled()
			time.Sleep(time.Minute)
			p.waiting(containerContext, "ErrImagePull", "timeout, retrying in 10s")
			time.Sleep(20 * time.Second)
			p.waiting(containerContext, "ErrImagePull", "timeout, retrying in 20s")
			time.Sleep(time.Second)
			if _, ok := p.prepare(ctx); ok {
				time.Sleep(time.Second)
				p.exit(containerKaniko, 0, "Completed", someDigest)
			}
		})
		var logs strings.Builder
		result, err := c.engine(t, testConfig()).Run(t.Context(), testPlan(), &logs)
		if err != nil || result.Digest != someDigest {
			t.Fatalf("Run = %+v, %v\n%s", result, err, logs.String())
		}
		rest := logs.String()
		for _, want := range []string{
			"Created the Job builds/kiln-0123456789abcdef-2\n", "Waiting: Unschedulable: 0/3 nodes are available for reasons\n",
			"Scheduled to node node-1\n", "Container context: pulling registry.example.com/kiln:v1", "Waiting: ErrImagePull: timeout",
		} {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Fatalf("the log lacks %q, or has it too early:\n%s", want, logs.String())
			}
			rest = after
		}
		for _, once := range []string{"ErrImagePull", "Wrote the Dockerfile\n", "Container context started\n", "Container kaniko started\n"} {
			if strings.Count(logs.String(), once) != 1 {
				t.Errorf("the log has %q not once:\n%s", once, logs.String())
			}
		}
	})
}

// refuse makes calls of a kind fail.
func refuse(c *testCluster, verb, resource string, times int, err error) {
	c.client.PrependReactor(verb, resource, func(k8stesting.Action) (bool, runtime.Object, error) {
		if times == 0 {
			return false, nil, nil
		}
		times--
		return true, nil, err
	})
}

func TestAnswersOfTheServerAreClassified(t *testing.T) {
	t.Parallel()
	jobs := schema.GroupResource{Group: "batch", Resource: "jobs"}
	secrets := schema.GroupResource{Resource: "secrets"}
	for name, tc := range map[string]struct {
		verb, resource string
		times          int
		err            error
		kind           builder.Kind
	}{
		"busy for a while":          {"create", "jobs", 3, apierrors.NewTooManyRequests("slow down", 1), ""},
		"broken for a while":        {"create", "secrets", 3, apierrors.NewInternalError(errors.New("etcd")), ""},
		"not reached for a while":   {"create", "jobs", 3, io.ErrUnexpectedEOF, ""},
		"broken":                    {"create", "jobs", -1, apierrors.NewInternalError(errors.New("etcd")), builder.KindUnavailable},
		"Job refused by admission":  {"create", "jobs", -1, apierrors.NewForbidden(jobs, "x", errors.New("exceeded quota")), builder.KindUnavailable},
		"Job not valid":             {"create", "jobs", -1, apierrors.NewInvalid(schema.GroupKind{Kind: "Job"}, "x", nil), builder.KindInvalidRequest},
		"Secret refused":            {"create", "secrets", -1, apierrors.NewForbidden(secrets, "x", errors.New("no")), builder.KindUnavailable},
		"Secret too large for etcd": {"create", "secrets", -1, apierrors.NewRequestEntityTooLargeError("limit is 3145728"), builder.KindInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, started(func(p *fakePod) { p.exit(containerKaniko, 0, "Completed", someDigest) }))
				refuse(c, tc.verb, tc.resource, tc.times, tc.err)
				_, err := c.engine(t, testConfig()).Run(t.Context(), testPlan(), io.Discard)
				if (err == nil) != (tc.kind == "") || (err != nil && builder.KindOf(err) != tc.kind) {
					t.Errorf("got %v, want %q", err, tc.kind)
				}
				if left := c.left(t); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		})
	}
}

func TestUnreadableLogIsReplacedByTheEndOfItInTheStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		word := "error building image: error building stage: failed to execute command: waiting for process to exit: exit status 7"
		c := newTestCluster(t, started(func(p *fakePod) { p.exit(containerKaniko, 7, "Error", "last words\n"+word) }))
		e := c.engine(t, testConfig())
		e.logs = brokenLogs{}
		var logs strings.Builder
		_, err := e.Run(t.Context(), testPlan(), &logs)
		if builder.KindOf(err) != builder.KindCommandFailed || !strings.Contains(err.Error(), "exit code 7") || !strings.Contains(logs.String(), "last words\n") {
			t.Errorf("got %v\n%s", err, logs.String())
		}
	})
}

type brokenLogs struct{}

func (brokenLogs) Stream(context.Context, string, string, time.Time) (io.ReadCloser, error) {
	return nil, fmt.Errorf("dial kubelet: %w", io.ErrUnexpectedEOF)
}
