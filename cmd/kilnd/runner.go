package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/kube"
	runs "kiln/builder/run"
	"kiln/builder/sandbox"
)

// runner executes the runs of a trigger. The zero value is none.
type runner struct {
	runs.Runner
	io.Closer
	// place names where its processes are: another runner of the same place finds them.
	place string
}

// newRunner makes what executes runs, unless this worker starts none.
func (s *service) newRunner(ctx context.Context, f buildFlags, stateDir string, on platform) (runner, error) {
	host, _ := os.Hostname()
	if !f.Trigger.Enabled || on.runner == nil {
		return runner{}, nil
	}
	if rehearsed, err := rehearsedRunner(); rehearsed != nil || err != nil {
		return runner{Runner: rehearsed, place: host}, err
	}
	made, err := on.runner(ctx, stateDir, s)
	if err != nil {
		return runner{}, fmt.Errorf("%w\nor start no runs here: --no-trigger-enabled", err)
	}
	return made, nil
}

// sandboxRunner runs functions on this machine.
func (f buildFlags) sandboxRunner(ctx context.Context, stateDir string, s *service) (runner, error) {
	dir, err := filepath.Abs(cmp.Or(f.Trigger.StateDir, filepath.Join(filepath.Dir(stateDir), "runs")))
	if err != nil {
		return runner{}, err
	}
	host, _ := os.Hostname()
	made, err := sandbox.NewRunner(ctx, sandbox.RunnerConfig{
		Launcher: f.Trigger.Launcher, Runtime: f.Sandbox.Runtime, StateDir: dir, Images: s.registry, Sources: s.sources,
		Limits: builder.Limits{
			Memory: int64(f.Trigger.Memory), CPU: f.Trigger.CPUs, PIDs: f.Trigger.PIDs, Disk: int64(f.Trigger.Disk), Timeout: f.Trigger.Timeout,
		},
		ImageSize: int64(f.Trigger.Disk), CacheSize: int64(f.Trigger.CacheSize),
	})
	if err != nil {
		return runner{}, err
	}
	return runner{Runner: made, Closer: made, place: host + ":" + dir}, nil
}

// kubeRunner runs functions in the cluster, where and as builds do. Triggers in several
// clusters that share one NATS need places of their own (--trigger-place).
func (w *workerCmd) kubeRunner(ctx context.Context, s *service, log zerolog.Logger) (runner, error) {
	client, cfg, err := w.cluster(s, log)
	if err != nil {
		return runner{}, err
	}
	// What is kept of a run is kept longer than a finished build.
	cfg.TTL = 0
	made, err := kube.NewRunner(ctx, client, kube.RunnerConfig{Config: cfg, Entrypoints: s.registry})
	if err != nil {
		return runner{}, err
	}
	return runner{Runner: made, Closer: made, place: "kube:" + cfg.Namespace + "/" + cfg.Instance}, nil
}
