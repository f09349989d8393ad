//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
)

// simulated is the taint of nodes that run nothing.
const simulated = "kiln.dev/simulated"

// scriptedKubelet is a node of a real cluster. It runs nothing: its Pods do what their
// Secret asks for as enginetest.Play does, and say so in status and log.
type scriptedKubelet struct {
	// client has the rights of an administrator.
	client *kubernetes.Clientset
	name   string
	logs   *fakeLogs
	ctx    context.Context //nolint:containedctx // the life of the node, which no call can be given

	mu   sync.Mutex
	ends map[types.UID]context.CancelFunc
	work sync.WaitGroup
}

// newScriptedKubelet adds a node of that name to the cluster until the test ends.
func newScriptedKubelet(t *testing.T, c *kubetest.Cluster, name string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	k := &scriptedKubelet{
		client: c.Admin, name: name, logs: &fakeLogs{files: map[string]*logFile{}}, ctx: ctx,
		ends: map[types.UID]context.CancelFunc{},
	}
	t.Cleanup(func() {
		stop()
		k.work.Wait()
		_ = k.client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	k.register(t, serveLogs(t, c, k.logs))
	k.work.Go(k.beat)
	k.watch(t)
	kubetest.Eventually(t, "the scheduler to accept the node", func() bool {
		node, err := k.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err == nil && len(node.Spec.Taints) == 1
	})
}

func (k *scriptedKubelet) register(t *testing.T, logs int32) {
	t.Helper()
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourcePods: resource.MustParse("500"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: k.name, Labels: nodeLabels(k.name)},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: simulated, Effect: corev1.TaintEffectNoSchedule}}},
	}
	nodes := k.client.CoreV1().Nodes()
	_ = nodes.Delete(t.Context(), k.name, metav1.DeleteOptions{})
	node, err := nodes.Create(t.Context(), node, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status = corev1.NodeStatus{
		Capacity: resources, Allocatable: resources,
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: logs}},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}},
	}
	data, err := json.Marshal(map[string]any{"status": node.Status})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Patch(t.Context(), k.name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

func nodeLabels(name string) map[string]string {
	return map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH}
}

// beat renews the node's lease, as every kubelet does.
func (k *scriptedKubelet) beat() {
	leases := k.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: k.name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &k.name, LeaseDurationSeconds: new(int32(40))},
	}
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		lease.Spec.RenewTime = new(metav1.NowMicro())
		if _, err := leases.Update(k.ctx, lease, metav1.UpdateOptions{}); err != nil {
			_, _ = leases.Create(k.ctx, lease, metav1.CreateOptions{})
		}
		select {
		case <-k.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watch plays every Pod of the node, and ends those that are deleted.
func (k *scriptedKubelet) watch(t *testing.T) {
	t.Helper()
	factory := informers.NewSharedInformerFactoryWithOptions(k.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.name).String()
	}))
	pods := factory.Core().V1().Pods().Informer()
	seen := func(object any) {
		pod, ok := object.(*corev1.Pod)
		if !ok {
			return
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		end, known := k.ends[pod.UID]
		switch {
		case known && pod.DeletionTimestamp != nil:
			end()
		case !known:
			ctx, cancel := context.WithCancel(k.ctx)
			k.ends[pod.UID] = cancel
			k.work.Go(func() { k.run(ctx, pod) })
		}
	}
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, object any) { seen(object) }}); err != nil {
		t.Fatal(err)
	}
	factory.Start(k.ctx.Done())
	k.work.Go(func() {
		<-k.ctx.Done()
		factory.Shutdown()
	})
}

// run is the life of a Pod.
func (k *scriptedKubelet) run(ctx context.Context, pod *corev1.Pod) {
	p := &scriptedPod{kubelet: k, pod: pod}
	if p.main() == containerRun {
		p.function(ctx)
	} else if plan, ok := p.prepare(ctx); ok {
		p.execute(ctx, plan)
	}
	<-ctx.Done()
	if k.ctx.Err() != nil {
		return
	}
	// Whoever deletes a Pod waits for its node to say that it has ended.
	p.status.Phase = corev1.PodFailed
	p.update()
	//nolint:contextcheck // ctx has ended with the Pod
	_ = k.client.CoreV1().Pods(pod.Namespace).Delete(k.ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
	})
}

// scriptedPod is a Pod with its status as the node sees it.
type scriptedPod struct {
	kubelet *scriptedKubelet
	pod     *corev1.Pod
	status  corev1.PodStatus
}

// main names the container that does the work.
func (p *scriptedPod) main() string { return p.pod.Spec.Containers[0].Name }

func (p *scriptedPod) update() {
	data, err := json.Marshal(map[string]any{"status": p.status})
	if err != nil {
		return
	}
	_, _ = p.kubelet.client.CoreV1().Pods(p.pod.Namespace).Patch(p.kubelet.ctx, p.pod.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
}

// set tells of a container's state.
func (p *scriptedPod) set(container string, state corev1.ContainerState) {
	all := &p.status.ContainerStatuses
	if container == containerContext {
		all = &p.status.InitContainerStatuses
	}
	*all = []corev1.ContainerStatus{{Name: container, Image: "scripted", State: state}}
	p.update()
}

func (p *scriptedPod) start(container string) io.Writer {
	file := p.kubelet.logs.file(p.pod.Name, container)
	p.set(container, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}})
	return file
}

func (p *scriptedPod) end(container string, code int32, reason, message string) {
	p.kubelet.logs.file(p.pod.Name, container).close()
	switch {
	case code != 0:
		p.status.Phase = corev1.PodFailed
	case container == p.main():
		p.status.Phase = corev1.PodSucceeded
	}
	p.set(container, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message, FinishedAt: metav1.Now()}})
}

// prepare waits for the Secret as a kubelet does, and plays the container "context".
func (p *scriptedPod) prepare(ctx context.Context) (builder.Plan, bool) {
	p.status = corev1.PodStatus{Phase: corev1.PodPending, StartTime: new(metav1.Now())}
	p.set(containerKaniko, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}})
	p.set(containerContext, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}})
	var name, destination string
	for _, v := range p.pod.Spec.Volumes {
		if v.Name == "plan" && v.Secret != nil {
			name = v.Secret.SecretName
		}
	}
	for _, arg := range p.pod.Spec.Containers[0].Args {
		if value, ok := strings.CutPrefix(arg, "--destination="); ok {
			destination = value
		}
	}
	for {
		secret, err := p.kubelet.client.CoreV1().Secrets(p.pod.Namespace).Get(ctx, name, metav1.GetOptions{})
		var d document
		if err == nil && json.Unmarshal(secret.Data[keyPlan], &d) == nil {
			_, _ = io.WriteString(p.start(containerContext), "Wrote the Dockerfile\n")
			p.end(containerContext, 0, "Completed", "")
			return builder.Plan{BuildID: d.BuildID, Dockerfile: d.Dockerfile, Destination: destination}, ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return builder.Plan{}, false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// execute plays the executor.
func (p *scriptedPod) execute(ctx context.Context, plan builder.Plan) {
	p.status.Phase = corev1.PodRunning
	log := p.start(containerKaniko)
	result, err := enginetest.Play()(ctx, plan, executorVoice{log})
	if ctx.Err() != nil {
		p.end(containerKaniko, 137, "Error", "")
		return
	}
	code, reason, message := executorEnd(result, err)
	if code != 0 {
		_, _ = io.WriteString(log, message+"\n")
	}
	p.end(containerKaniko, code, reason, message)
}

// serveLogs answers the API server as a kubelet does until the test ends, and returns
// its port.
func serveLogs(t *testing.T, c *kubetest.Cluster, logs logStreams) int32 {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", func(w http.ResponseWriter, r *http.Request) {
		since, _ := time.Parse(time.RFC3339, r.URL.Query().Get("sinceTime"))
		stream, err := logs.Stream(r.Context(), r.PathValue("pod"), r.PathValue("container"), since)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		defer stream.Close()
		_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, stream)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() {
		cert := filepath.Join(c.Dir, "pki", "kubelet-server")
		done <- server.ServeTLS(listener, cert+".crt", cert+".key")
	}()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serving logs: %v", err)
		}
	})
	address, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("listening at %s", listener.Addr())
	}
	return int32(address.Port)
}

// flushing passes every line on at once.
type flushing struct {
	w     io.Writer
	flush *http.ResponseController
}

// Write implements io.Writer.
func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, f.flush.Flush())
}
