//go:build kube

package kube

import (
	"context"
	"fmt"
	"io"
	"log"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
	runs "kiln/builder/run"
	"kiln/builder/run/runtest"
)

func TestKubeConformsOnARealNode(t *testing.T) { //nolint:paralleltest // real builds need the machine to themselves
	c := kubetest.Real(t)
	address := c.RealNode(t)
	team := newTeam(t, c, nil)
	began := time.Now()
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		t.Helper()
		registry := enginetest.NewRegistryAt(t, address)
		cfg := team.config(kubetest.Node)
		cfg.Registries = insecure{}
		return enginetest.Harness{
			Engine: team.engine(t, cfg), Registry: registry, Base: enginetest.PushBase(t, registry.Host+"/base"),
			Leftovers: func() []string { return team.leftBy(t, cfg) },
		}
	})
	t.Cleanup(func() { t.Logf("figures: the suite on a real node took %s", time.Since(began).Round(time.Second)) })
}

func TestRunnerConformsOnARealNode(t *testing.T) { //nolint:paralleltest // real containers need the machine to themselves
	c := kubetest.Real(t)
	address := c.RealNode(t)
	team := newTeam(t, c, nil)
	// Nodes pull by TLS only.
	ca := enginetest.NewAuthority(t)
	host := enginetest.NewTLSServer(t, ca, registry.New(registry.Logger(log.New(io.Discard, "", 0))), address).Listener.Addr().String()
	c.Trust(t, host, ca.File)
	image := runtest.PushImage(t, host+"/team/probe", runtest.Build(t, runtest.ProbePackage), nil, remote.WithTransport(ca.Transport(t)))
	runtest.Run(t, func(t *testing.T) runtest.Harness {
		t.Helper()
		cfg := team.config(kubetest.Node)
		cfg.Grace = 3 * time.Second
		return runtest.Harness{
			Runner: team.runner(t, cfg), Another: func(t *testing.T) runs.Runner { t.Helper(); return team.runner(t, cfg) },
			Image: image, Memory: true, MaxResults: 3800, LosesLogs: true, Leftovers: func() []string { return team.left(cfg) },
		}
	})
}

func TestReasonsOfARealNode(t *testing.T) { //nolint:paralleltest // real builds need the machine to themselves
	c := kubetest.Real(t)
	address := c.RealNode(t)
	registry := enginetest.NewRegistryAt(t, address)
	base := enginetest.PushBase(t, registry.Host+"/base")
	for name, r := range map[string]reason{ //nolint:paralleltest // the same
		"image that is nowhere": {
			config: func(c *Config) {
				c.ContextImage, c.PullPolicy = registry.Host+"/kiln:none", corev1.PullIfNotPresent
			},
			kind: builder.KindUnavailable, says: "Image", within: 20 * time.Second,
		},
		"image that may not be pulled": {
			config: func(c *Config) { c.ExecutorImage = "localhost/kaniko:none" },
			// The kubelet says so when it looks at the Pod the next time.
			kind: builder.KindUnavailable, says: "ErrImageNeverPull", within: 40 * time.Second,
		},
		"image without the executor": {
			config: func(c *Config) { c.ExecutorImage = kubetest.ContextImage },
			kind:   builder.KindUnavailable, says: "/kaniko/executor", within: 20 * time.Second,
		},
		"memory limit of 16 MiB": {
			plan: func(p *builder.Plan) {
				p.Limits.Memory = 16 << 20
				p.Dockerfile = strings.Replace(p.Dockerfile, waits, `RUN x=x; while :; do x="$x$x"; done`, 1)
			},
			kind: builder.KindOutOfMemory, says: "limit of 16 MiB", within: 30 * time.Second,
		},
		"command that outgrows the disk limit": {
			plan: func(p *builder.Plan) {
				p.Limits.Disk = 16 << 20
				p.Dockerfile = strings.Replace(p.Dockerfile, waits, "RUN dd if=/dev/zero of=/big bs=1048576 count=64; sleep 600", 1)
			},
			kind: builder.KindDiskFull, says: "Evicted", within: time.Minute,
		},
		"limit of the plan": {
			plan: func(p *builder.Plan) { p.Limits.Timeout = 5 * time.Second },
			kind: builder.KindTimeout, says: "5s",
		},
		"deleted Job": {
			during: func(ctx context.Context, c *team, job string) error {
				return c.Admin.BatchV1().Jobs(c.Namespace).Delete(ctx, job, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
			},
			kind: builder.KindUnavailable, says: "somebody",
		},
	} {
		t.Run(name, func(t *testing.T) {
			team := newTeam(t, c, nil)
			cfg := team.config(kubetest.Node)
			cfg.Registries = insecure{}
			plan := enginetest.NewPlan(base, registry.Host+"/team/image", fmt.Sprint(t.Name(), time.Now()), waits)
			r.check(t, team, cfg, plan)
		})
	}
}

// insecure is an anonymous user's way to registries that speak plain HTTP.
type insecure struct{}

// Access implements Registries.
func (insecure) Access(_ context.Context, host, _ string) (builder.Access, error) {
	return builder.Access{Host: host, Insecure: true}, nil
}
