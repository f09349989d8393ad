//go:build kube

package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
)

// Everything but the nodes is real, and the limits of calls are the defaults.
func TestTwoHundredJobsAtOnce(t *testing.T) { //nolint:paralleltest // it measures the memory of the process
	const builds = 200
	c := kubetest.Real(t)
	startKwok(t, c, "scale", 4)
	team := newTeam(t, c, nil)
	cfg := team.config("")
	cfg.NodeSelector, cfg.Waits = map[string]string{simulated: "scale"}, Waits{}
	// What earlier tests have left is not the client's.
	runtime.GC()
	before := heap()
	e := team.engine(t, cfg)

	began := time.Now()
	var wg sync.WaitGroup
	for i := range builds {
		wg.Go(func() {
			plan := enginetest.NewPlan(testPlan().Base, "registry.example.com/team/image", fmt.Sprint(t.Name(), i), "RUN true")
			plan.Limits.Timeout = 5 * time.Minute
			var logs bytes.Buffer
			result, err := e.Run(t.Context(), plan, &logs)
			if err != nil || result.Digest != someDigest || !strings.Contains(logs.String(), "simulated") {
				t.Errorf("build %d: %s, %v\n%s", i, result.Digest, err, &logs)
			}
		})
	}
	most := before
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(200 * time.Millisecond):
			most = max(most, heap())
		}
	}
	took := time.Since(began).Round(100 * time.Millisecond)

	counts, total := team.Calls.Counts(), 0
	var text []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		text = append(text, fmt.Sprintf("%d %s", counts[name], name))
		total += counts[name]
	}
	t.Logf("figures: %d Jobs at once: all ended after %s; %.1f calls per build (%s); at most %d MiB more heap",
		builds, took, float64(total)/builds, strings.Join(text, ", "), (most-before)>>20)
	for _, informer := range []string{"watch jobs", "watch pods"} {
		// A busy server ends watches, which then begin again; one per build would be 200.
		if n := counts[informer]; n < 1 || n > builds/4 {
			t.Errorf("%d calls of %s, want those of one informer", n, informer)
		}
	}
	if perBuild := float64(total) / builds; perBuild > 9 {
		t.Errorf("%.1f calls per build, want about 7", perBuild)
	}
	if left := team.left(cfg); len(left) > 0 {
		t.Errorf("%d objects are left: %.500s", len(left), left)
	}
}

func heap() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// startKwok adds simulated nodes until the test ends; they have the label and taint
// "simulated", with the name as the label's value.
func startKwok(t *testing.T, c *kubetest.Cluster, name string, nodes int) {
	t.Helper()
	config, err := filepath.Abs("testdata/kwok.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	logs := serveLogs(t, c, newSimulatedLogs(t, c))
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(c.Dir, "bin", "kwok"), "--config="+config, "--kubeconfig="+filepath.Join(c.Dir, "admin.kubeconfig"),
		"--manage-nodes-with-label-selector="+simulated+"="+name, "--node-ip=127.0.0.1", fmt.Sprint("--node-port=", logs), "--server-address=127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("kwok printed:\n%.5000s", &out)
		}
	})
	for i := range nodes {
		node := fmt.Sprint(name, "-", i)
		_ = c.Admin.CoreV1().Nodes().Delete(t.Context(), node, metav1.DeleteOptions{})
		labels := nodeLabels(node)
		labels[simulated] = name
		if _, err := c.Admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: node, Labels: labels},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: simulated, Effect: corev1.TaintEffectNoSchedule}}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = c.Admin.CoreV1().Nodes().Delete(context.WithoutCancel(t.Context()), node, metav1.DeleteOptions{})
		})
	}
	kubetest.Eventually(t, "the simulated nodes to be ready", func() bool {
		list, err := c.Admin.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{LabelSelector: simulated + "=" + name})
		return err == nil && !slices.ContainsFunc(list.Items, func(n corev1.Node) bool {
			return len(n.Status.Conditions) == 0 || len(n.Spec.Taints) != 1
		})
	})
}

// simulatedLogs are one line each, and end with their Pod.
type simulatedLogs struct{ pods cache.SharedIndexInformer }

func newSimulatedLogs(t *testing.T, c *kubetest.Cluster) simulatedLogs {
	t.Helper()
	factory := informers.NewSharedInformerFactory(c.Admin, 0)
	logs := simulatedLogs{factory.Core().V1().Pods().Informer()}
	if err := logs.pods.AddIndexers(cache.Indexers{"name": func(object any) ([]string, error) {
		meta, err := meta.Accessor(object)
		return []string{meta.GetName()}, err
	}}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	factory.Start(ctx.Done())
	t.Cleanup(func() {
		stop()
		factory.Shutdown()
	})
	return logs
}

// Stream implements logStreams.
func (l simulatedLogs) Stream(ctx context.Context, pod, container string, _ time.Time) (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		defer w.Close()
		_, err := io.WriteString(w, time.Now().UTC().Format(time.RFC3339Nano)+" simulated "+container+"\n")
		for err == nil && container == containerKaniko && ctx.Err() == nil && l.runs(pod) {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return r, nil
}

func (l simulatedLogs) runs(name string) bool {
	pods := typed[*corev1.Pod](l.pods.GetIndexer().ByIndex("name", name))
	return len(pods) > 0 && terminated(pods[0], containerKaniko) == nil
}
