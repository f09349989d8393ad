package kube

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ClientConfig says how to reach an API server.
type ClientConfig struct {
	// Kubeconfig is a file; empty: $KUBECONFIG, ~/.kube/config, or, where there is
	// neither, the service account of the Pod that this process runs in.
	Kubeconfig string
	// Context of the kubeconfig. Defaults to its current one.
	Context string
	// QPS and Burst bound the calls of this process, those of all builds together. A
	// build makes about eight. Default to 50 and 100.
	QPS   float32
	Burst int
	// REST is used instead of a kubeconfig when it is set.
	REST *rest.Config
}

// Client is a connection to an API server. Safe for concurrent use.
type Client struct {
	kubernetes.Interface
	// Namespace is that of the kubeconfig's context or of this process' Pod.
	Namespace string
}

// Connect returns a client. It makes no call yet.
func Connect(cfg ClientConfig) (Client, error) {
	setDefault(&cfg.QPS, 50)
	setDefault(&cfg.Burst, 100)
	namespace, target := "default", cfg.REST
	if target == nil {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = cfg.Kubeconfig
		loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context})
		var err error
		if target, err = loader.ClientConfig(); err != nil {
			return Client{}, fmt.Errorf("read kubeconfig: %w", err)
		}
		if namespace, _, err = loader.Namespace(); err != nil {
			return Client{}, fmt.Errorf("read kubeconfig: %w", err)
		}
	}
	target = rest.CopyConfig(target)
	target.QPS, target.Burst, target.UserAgent = cfg.QPS, cfg.Burst, "kiln"
	target.ContentType = "application/vnd.kubernetes.protobuf"
	target.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(target)
	if err != nil {
		return Client{}, fmt.Errorf("make kubernetes client: %w", err)
	}
	return Client{Interface: client, Namespace: namespace}, nil
}
