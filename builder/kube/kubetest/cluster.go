package kubetest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// Cluster is what `make kube-up` has started.
type Cluster struct {
	// Dir is its folder: certificates in pki, programs in bin.
	Dir string
	// Admin may do everything, by way of REST, whose connections end with the test.
	Admin *kubernetes.Clientset
	REST  *rest.Config
}

// Real returns the cluster whose folder is in KILN_TEST_KUBE; without one the test is
// skipped.
func Real(tb testing.TB) *Cluster {
	tb.Helper()
	dir := os.Getenv("KILN_TEST_KUBE")
	if dir == "" {
		tb.Skip("SKIPPED: no cluster; `make e2e-kube` starts one and runs this test on it")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		tb.Fatal(err)
	}
	// Files would be watched, and nobody can end that.
	if err := rest.LoadTLSFiles(cfg); err != nil {
		tb.Fatal(err)
	}
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = "", "", ""
	conns := &connections{}
	tb.Cleanup(conns.close)
	cfg.Dial, cfg.QPS, cfg.Burst = conns.dial, 500, 1000
	return &Cluster{Dir: dir, Admin: Client(tb, cfg), REST: cfg}
}

// Client returns a client for a changed copy of REST.
func Client(tb testing.TB, cfg *rest.Config) *kubernetes.Clientset {
	tb.Helper()
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// connections ends connections with the test: streams may keep them from being idle.
type connections struct {
	mu  sync.Mutex
	all []net.Conn
}

func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all = append(c.all, conn)
	}
	return conn, err
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.all {
		_ = conn.Close()
	}
}

// Role returns the Role of a worker from deploy/manifests.
func Role(tb testing.TB) *rbacv1.Role {
	tb.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != filepath.Dir(dir) {
		raw, missing := os.ReadFile(filepath.Join(dir, "deploy", "manifests", "role.yaml")) //nolint:gosec // of this repository
		if missing == nil {
			role := &rbacv1.Role{}
			if err := yaml.UnmarshalStrict(raw, role); err != nil {
				tb.Fatal(err)
			}
			return role
		}
		dir = filepath.Dir(dir)
	}
	tb.Fatal("no deploy/manifests/role.yaml above the test")
	return nil
}

// NewNamespace makes a namespace that enforces a Pod Security Standard and ends with the
// test.
func (c *Cluster) NewNamespace(tb testing.TB, standard string) (name string) {
	tb.Helper()
	ctx, core := tb.Context(), c.Admin.CoreV1()
	made, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "kiln-test-", Labels: map[string]string{
			"pod-security.kubernetes.io/enforce": standard, "pod-security.kubernetes.io/warn": standard,
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = core.Namespaces().Delete(context.WithoutCancel(ctx), made.Name, metav1.DeleteOptions{}) })
	// Pods are refused before the controllers have made their service account.
	Eventually(tb, "the service account of Pods", func() bool {
		_, err := core.ServiceAccounts(made.Name).Get(ctx, "default", metav1.GetOptions{})
		return err == nil
	})
	return made.Name
}

// Team is a namespace under the Pod Security Standard "baseline", and a service account
// in it with the Role of a worker.
type Team struct {
	*Cluster
	Namespace string
	// Worker is how the service account connects; Calls counts what it calls this way.
	Worker *rest.Config
	Calls  *Calls
	// Kubeconfig is a file for the same, for other processes; nobody counts their calls.
	Kubeconfig string
}

// NewTeam makes a namespace that ends with the test. The Role becomes one of it.
func (c *Cluster) NewTeam(tb testing.TB, role *rbacv1.Role) *Team {
	tb.Helper()
	ctx, core := tb.Context(), c.Admin.CoreV1()
	try := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	ns := c.NewNamespace(tb, "baseline")
	account := metav1.ObjectMeta{Name: role.Name}
	role.Namespace = ns
	_, err := c.Admin.RbacV1().Roles(ns).Create(ctx, role, metav1.CreateOptions{})
	try(err)
	_, err = core.ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: account}, metav1.CreateOptions{})
	try(err)
	_, err = c.Admin.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: account, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: role.Name, Namespace: ns}},
	}, metav1.CreateOptions{})
	try(err)
	token, err := core.ServiceAccounts(ns).CreateToken(ctx, role.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	try(err)
	team := &Team{Cluster: c, Namespace: ns, Worker: rest.AnonymousClientConfig(c.REST), Calls: &Calls{counts: map[string]int{}}}
	team.Worker.BearerToken = token.Status.Token
	team.Worker.Wrap(team.Calls.count)
	team.writeKubeconfig(tb)
	return team
}

func (t *Team) writeKubeconfig(tb testing.TB) {
	tb.Helper()
	const name = "worker"
	t.Kubeconfig = filepath.Join(tb.TempDir(), "kubeconfig")
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: t.Worker.Host, CertificateAuthorityData: t.Worker.CAData}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: t.Worker.BearerToken}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: t.Namespace}
	cfg.CurrentContext = name
	if err := clientcmd.WriteToFile(*cfg, t.Kubeconfig); err != nil {
		tb.Fatal(err)
	}
}

// wait is for a moment, or until ctx ends.
func wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// Eventually waits a minute at most for what somebody else does.
func Eventually(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	late := time.After(time.Minute)
	for !done() {
		select {
		case <-late:
			tb.Fatalf("waited a minute for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
