//go:build kube

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
)

// kubeSite is NATS and a registry on this machine, for workers whose builds are Jobs on
// a real node.
type kubeSite struct {
	*kiln
	team *kubetest.Team
}

func newKubeSite(t *testing.T) *kubeSite {
	t.Helper()
	cluster := kubetest.Real(t)
	address := cluster.RealNode(t)
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	s := &kubeSite{team: cluster.NewTeam(t, kubetest.Role(t)), kiln: &kiln{
		dir: t.TempDir(), bin: bin, NATSURL: startJetStream(t), Registry: enginetest.NewRegistryAt(t, address).Host,
	}}
	s.env = append(os.Environ(), "HOME="+s.dir, "XDG_DATA_HOME=", "KILN_NATS_URL="+s.NATSURL,
		"KILN_REGISTRY_URL="+s.Registry, "KILN_REGISTRY_INSECURE="+s.Registry, "KILN_WORKER_LEASE=6s",
		"KILN_KUBE_KUBECONFIG="+s.team.Kubeconfig, "KILN_KUBE_IMAGE="+kubetest.ContextImage,
		"KILN_KUBE_EXECUTOR_IMAGE="+kubetest.ExecutorImage, "KILN_KUBE_PULL_POLICY=Never",
		"KILN_KUBE_NODE_SELECTOR=kubernetes.io/hostname="+kubetest.Node, "KILN_KUBE_CLASSES=default=cpu:10m/,memory:64Mi/1Gi")
	if out, errs, code := s.run(t.Context(), "provision", "--stream-ack-wait=10s"); code != 0 {
		t.Fatalf("provision: %s%s", out, errs)
	}
	return s
}

// startJetStream runs a NATS server until the test ends; it returns its URL.
func startJetStream(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}

// worker starts `kiln worker --engine kube`; kill ends it as a power cut would, and the
// end of the test softly.
func (s *kubeSite) worker(t *testing.T) (out *lockedBuffer, kill func()) {
	t.Helper()
	out = &lockedBuffer{}
	cmd := exec.Command(s.bin, "worker", "--engine=kube", "--http-addr=127.0.0.1:0")
	cmd.Env, cmd.Stdout, cmd.Stderr = slices.Clone(s.env), out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	t.Cleanup(func() {
		if killed {
			return
		}
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("kiln worker ended with %v\n%s", err, out)
		}
	})
	await(t, time.Minute, "the worker to be ready", func() bool { return strings.Contains(out.String(), "worker is ready") })
	return out, func() {
		killed = true
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// record notes the name of every Job and Pod that there is or was in the namespace.
func (s *kubeSite) record(t *testing.T) (seen func() []string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	names := map[string]bool{}
	var work sync.WaitGroup
	follow := func(kind string, w watch.Interface, err error) {
		if err != nil {
			t.Fatal(err)
		}
		work.Go(func() {
			for event := range w.ResultChan() {
				if object, ok := event.Object.(metav1.Object); ok {
					mu.Lock()
					names[kind+" "+object.GetName()] = true
					mu.Unlock()
				}
			}
		})
		context.AfterFunc(ctx, w.Stop)
	}
	jobs, err := s.team.Admin.BatchV1().Jobs(s.team.Namespace).Watch(ctx, metav1.ListOptions{})
	follow("job", jobs, err)
	pods, err := s.team.Admin.CoreV1().Pods(s.team.Namespace).Watch(ctx, metav1.ListOptions{})
	follow("pod", pods, err)
	t.Cleanup(func() {
		stop()
		work.Wait()
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		var all []string
		for name := range names {
			all = append(all, name)
		}
		slices.Sort(all)
		return all
	}
}

func TestAnotherWorkerFinishesTheJobOfAKilledOne(t *testing.T) {
	s := newKubeSite(t)
	base := s.Registry + "/base:1"
	pushBase(t, base, 0)
	seen := s.record(t)
	js := s.js(t)
	nc, err := nats.Connect(s.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	lines, err := nc.SubscribeSync("build.log.>")
	if err != nil {
		t.Fatal(err)
	}
	first, kill := s.worker(t)
	if _, err := js.Publish(t.Context(), "build.requested", functionJSON(t, "killed", base, "echo it has begun; sleep 10; echo done > /done"), jetstreamID("killed-1")...); err != nil {
		t.Fatal(err)
	}
	for begun := false; !begun; {
		msg, err := lines.NextMsg(time.Minute)
		if err != nil {
			t.Fatalf("the command never ran: %v\n%s", err, first)
		}
		begun = strings.Contains("\n"+string(msg.Data), "\nit has begun")
	}
	second, _ := s.worker(t)
	kill()
	began := time.Now()
	all := terminals(t, js, "killed-1", 90*time.Second)
	took := time.Since(began).Round(100 * time.Millisecond)
	if len(all) != 1 || all[0].subject != "build.completed" || all[0].field(t, "engine") != "kube" {
		t.Fatalf("terminal events = %+v, want one build.completed\n%s", all, second)
	}
	if attempt := all[0].field(t, "attempt"); attempt != 2.0 {
		t.Errorf("attempt = %v, want 2", attempt)
	}
	if names := seen(); len(names) != 2 {
		t.Errorf("there were %q, want one Job with one Pod", names)
	}
	image, digest := fmt.Sprint(all[0].field(t, "image")), fmt.Sprint(all[0].field(t, "digest"))
	if got, err := crane.Digest(image); err != nil || got != digest {
		t.Errorf("%s is %s (%v), want %s", image, got, err, digest)
	}
	await(t, 30*time.Second, "the Job to be collected", func() bool {
		jobs, err := s.team.Admin.BatchV1().Jobs(s.team.Namespace).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(jobs.Items) == 0
	})
	t.Logf("figures: the build ended %s after its worker was killed", took)
}
