package main

import (
	"cmp"
	"context"
	"io"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/kube"
	runs "kiln/builder/run"
	"kiln/builder/sandbox"
)

// runner is a run.Runner that this process owns.
type runner interface {
	runs.Runner
	io.Closer
}

// newRunner makes what runs functions, of the kind of the engine and by its settings.
func (w *workerCmd) newRunner(ctx context.Context, stateDir string, s *service, log zerolog.Logger) (runner, error) {
	if w.Engine != "kube" {
		return w.sandboxRunner(ctx, stateDir, s)
	}
	client, cfg, err := w.cluster(s, log)
	if err != nil {
		return nil, err
	}
	// What is kept of a run is kept longer than a finished build.
	cfg.TTL = 0
	return kube.NewRunner(ctx, client, kube.RunnerConfig{Config: cfg, Entrypoints: s.registry})
}

// sandboxRunner makes the runner of this machine, with a state directory beside that of
// the engine: processes outlive their runner, so that it must not be swept with it.
func (f buildFlags) sandboxRunner(ctx context.Context, stateDir string, s *service) (runner, error) {
	return sandbox.NewRunner(ctx, sandbox.RunnerConfig{
		Runtime: f.Sandbox.Runtime, StateDir: cmp.Or(f.Sandbox.StateDir, stateDir) + "-runs", Images: s.registry, Sources: s.sources,
		Limits: builder.Limits{Memory: int64(f.Sandbox.Memory), Disk: int64(f.Sandbox.Disk), CPU: f.Sandbox.CPUs, PIDs: f.Sandbox.PIDs},
	})
}
