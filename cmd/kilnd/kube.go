package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/rs/zerolog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"kiln/builder"
	"kiln/builder/kube"
	"kiln/cmd/cli"
)

// kubeFlags say how builds run as Kubernetes Jobs.
type kubeFlags struct {
	Kubeconfig       string            `type:"existingfile" help:"Kubeconfig. Defaults to $KUBECONFIG, ~/.kube/config, or the service account of the worker's own Pod." placeholder:"FILE"`
	Context          string            `help:"Context of the kubeconfig. Defaults to its current one." placeholder:"NAME"`
	Namespace        string            `help:"Namespace of Jobs. Defaults to the context's, or the worker's own." placeholder:"NAME"`
	Instance         string            `default:"kiln" help:"Tells installations in one namespace apart; workers that share a NATS prefix share it."`
	Image            string            `help:"Kiln's own image, which prepares builds. Required with --engine kube." placeholder:"IMAGE"`
	ExecutorImage    string            `help:"Image of the Kaniko executor. Defaults to ghcr.io/osscontainertools/kaniko in the version that Kiln is tested with." placeholder:"IMAGE"`
	PullPolicy       string            `default:"IfNotPresent" enum:"IfNotPresent,Always,Never" help:"When nodes pull the two images."`
	PullSecrets      []string          `help:"Secrets that nodes pull the two images with." placeholder:"NAME"`
	Helpers          []string          `help:"Credential helpers that the executor may use, for the identity of its service account: env, google, ecr, acr, gitlab." placeholder:"NAME"`
	ServiceAccount   string            `help:"Service account of build Pods; its token is not mounted. Defaults to the namespace's default." placeholder:"NAME"`
	ServiceAccounts  []string          `help:"Service accounts that functions may ask for." placeholder:"NAME"`
	NodeSelector     map[string]string `help:"Labels of nodes for builds." placeholder:"LABEL=VALUE"`
	Tolerations      string            `help:"Tolerations of builds, as a JSON list." placeholder:"JSON"`
	PriorityClass    string            `help:"Priority class of builds whose function asks for none." placeholder:"NAME"`
	PodLabels        map[string]string `help:"Labels of build Pods, for workload identity for example." placeholder:"LABEL=VALUE"`
	PodAnnotations   map[string]string `help:"Annotations of build Pods." placeholder:"NAME=VALUE"`
	RuntimeClass     string            `help:"Runtime class of build Pods, for gVisor or Kata." placeholder:"NAME"`
	UserNamespaces   bool              `help:"Give build Pods user ids of their own (hostUsers: false)."`
	Classes          map[string]string `help:"Resource classes, requests and limits of builds: default=cpu:500m/,memory:1Gi/4Gi,disk:5Gi/20Gi." placeholder:"NAME=CLASS"`
	ProjectClasses   map[string]string `help:"Resource classes of projects that do not get default." placeholder:"PROJECT=NAME"`
	Zero             []string          `help:"Resources that builds are limited to none of: nvidia.com/gpu." placeholder:"RESOURCE"`
	WorkspaceSize    size              `default:"2GiB" help:"Limit of a build's context and source."`
	WorkspaceMemory  bool              `help:"Keep context and source in memory; they count to the memory limit."`
	Unschedulable    time.Duration     `default:"5m" help:"How long a build may wait for a node."`
	ImagePull        time.Duration     `default:"1m" help:"How long a node may fail to pull the two images."`
	Start            time.Duration     `default:"15m" help:"How long a build may take to start for any other reason."`
	SecretsNamespace string            `help:"Namespace in which MLRun keeps the secrets of projects, read as mlrun-project-secrets-PROJECT when a build needs them. Those of secrets.dir go first." placeholder:"NAME"`
	SecretsProjects  []string          `help:"Projects whose secrets are read from there. Defaults to all." placeholder:"PROJECT"`
	NATSURL          string            `name:"nats-url" env:"KILN_KUBE_NATS_URL" help:"NATS server as Pods reach it, for uploaded sources. Defaults to --nats-url without its user." placeholder:"URL"`
	NATSCredentials  string            `name:"nats-credentials" env:"KILN_KUBE_NATS_CREDENTIALS" type:"existingfile" help:"Credentials file that Pods read uploaded sources with. The worker's own are not given to Pods." placeholder:"FILE"`
	NATSUser         string            `name:"nats-user" env:"KILN_KUBE_NATS_USER" help:"User that Pods read uploaded sources as, in place of credentials." placeholder:"NAME"`
	NATSPassword     string            `name:"nats-password" env:"KILN_KUBE_NATS_PASSWORD" help:"Password of that user. Prefer the environment." placeholder:"TEXT"`
	TTL              time.Duration     `name:"ttl" default:"15m" help:"How long a finished Job stays that no worker collects."`
	QPS              float32           `name:"qps" default:"50" help:"Calls of the API server per second, of all builds together."`
	Burst            int               `default:"100" help:"Calls of the API server at once."`
}

// kube connects the service to the cluster.
func (w *workerCmd) kube(ctx context.Context, s *service, log zerolog.Logger) (engine, error) {
	client, cfg, err := w.cluster(s, log)
	if err != nil {
		return nil, err
	}
	if f := w.Kube; f.SecretsNamespace != "" {
		s.secrets = secretStores{kube.NewProjectSecrets(client, f.SecretsNamespace, f.SecretsProjects...), s.secrets}
	}
	return kube.New(ctx, client, cfg)
}

// cluster returns the connection to the cluster, and how Jobs are made there.
func (w *workerCmd) cluster(s *service, log zerolog.Logger) (client kube.Client, cfg kube.Config, err error) {
	f := w.Kube
	if f.Image == "" {
		return client, cfg, cli.Usage(errors.New("--engine kube needs --kube-image, the image of this very program"))
	}
	if cfg, err = f.config(); err != nil {
		return client, cfg, cli.Usage(err)
	}
	if cfg.SourceSettings, err = w.podSources(); err != nil {
		return client, cfg, cli.Usage(err)
	}
	klog.SetSlogLogger(slog.New(zerolog.NewSlogHandler(log)))
	if client, err = kube.Connect(kube.ClientConfig{Kubeconfig: f.Kubeconfig, Context: f.Context, QPS: f.QPS, Burst: f.Burst}); err != nil {
		return client, cfg, err
	}
	cfg.Namespace, cfg.Registries = cmp.Or(f.Namespace, client.Namespace), s.registry
	return client, cfg, nil
}

// secretStores are places of secrets; of several that have one, the last counts.
type secretStores []builder.SecretStore

// Secrets implements builder.SecretStore.
func (s secretStores) Secrets(ctx context.Context, project string) (map[string]string, error) {
	all := map[string]string{}
	for _, store := range s {
		found, err := store.Secrets(ctx, project)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, found)
	}
	return all, nil
}

func (f kubeFlags) config() (kube.Config, error) {
	executor := builder.DefaultExecutor()
	cfg := kube.Config{
		Namespace: f.Namespace, Instance: f.Instance, ContextImage: f.Image,
		ExecutorImage: cmp.Or(f.ExecutorImage, "ghcr.io/"+executor.Name+":"+executor.Version),
		PullPolicy:    corev1.PullPolicy(f.PullPolicy), PullSecrets: f.PullSecrets, CredentialHelpers: f.Helpers,
		Classes: map[string]corev1.ResourceRequirements{}, ProjectClasses: f.ProjectClasses, Zero: f.Zero,
		WorkspaceSize: int64(f.WorkspaceSize), WorkspaceInMemory: f.WorkspaceMemory,
		NodeSelector: f.NodeSelector, PriorityClass: f.PriorityClass,
		ServiceAccount: f.ServiceAccount, ServiceAccounts: f.ServiceAccounts,
		PodLabels: f.PodLabels, PodAnnotations: f.PodAnnotations,
		RuntimeClass: f.RuntimeClass, UserNamespaces: f.UserNamespaces, TTL: f.TTL,
		Waits: kube.Waits{Unschedulable: f.Unschedulable, Image: f.ImagePull, Start: f.Start},
	}
	if f.Tolerations != "" {
		if err := json.Unmarshal([]byte(f.Tolerations), &cfg.Tolerations); err != nil {
			return cfg, fmt.Errorf("--kube-tolerations is not a JSON list of tolerations: %w", err)
		}
	}
	for name, text := range f.Classes {
		class, err := kube.ParseClass(text)
		if err != nil {
			return cfg, fmt.Errorf("--kube-classes: %s: %w", name, err)
		}
		cfg.Classes[name] = class
	}
	return cfg, nil
}
