package main

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/events/natsbus"
	"kiln/worker/trigger"
)

// triggerFlags say how runs are started.
type triggerFlags struct {
	Enabled      bool          `default:"true" negatable:"" help:"Start runs: take run.requested, wait for the image, run it."`
	Slots        int           `default:"4" help:"Runs in hand at the same time."`
	Timeout      time.Duration `default:"24h" help:"Time limit of a run that names none, from the start of its process."`
	StateDir     string        `help:"Where images are unpacked and runs live. Workers of one machine may share it. Defaults to a folder of the data directory." placeholder:"DIR"`
	Memory       size          `default:"4GiB" help:"Memory limit of a run that names none."`
	CPUs         float64       `name:"cpus" default:"0" help:"CPU limit of a run that names none, in cores; 0 is none."`
	PIDs         int64         `name:"pids" default:"4096" help:"Process limit of a run."`
	Disk         size          `default:"20GiB" help:"Limit of what a run writes, and of an unpacked image."`
	CacheSize    size          `default:"40GiB" help:"Unpacked images that are kept."`
	Launcher     string        `help:"The program kiln-init. Defaults to kiln-init beside kiln or on PATH." placeholder:"FILE"`
	ArtifactPath string        `help:"Where runs put artifacts that name no place (MLRun's artifact_path)." placeholder:"URL"`
	DBPath       string        `name:"dbpath" help:"Address of MLRun's API for runs (MLRUN_DBPATH). Defaults to none." placeholder:"URL"`
	MaxAttempts  int           `default:"5" help:"Starts of a run when the fault is not the run's."`
	Place        string        `help:"Name of where processes are: triggers with the same place attach to each other's runs. Defaults to the host and the state directory." placeholder:"NAME"`
	Lost         time.Duration `default:"10m" help:"Silence of a trigger after which its runs have failed, while no trigger of its place goes on with them."`
}

// newTrigger wires a trigger.
func (s *service) newTrigger(ctx context.Context, f buildFlags, prefix string, bus *natsbus.Bus, reg prometheus.Registerer, log zerolog.Logger) (*trigger.Trigger, error) {
	rules, err := f.function()
	if err != nil {
		return nil, err
	}
	deps, err := runPorts(ctx, bus)
	if err != nil {
		return nil, err
	}
	deps.Runner, deps.Secrets, deps.PinSource = s.runner, s.secrets, s.sources.Pin
	deps.Resolve = planRuns(runs.Config{Timeout: f.Trigger.Timeout, ArtifactPath: f.Trigger.ArtifactPath, DBPath: f.Trigger.DBPath}, rules)
	deps.Pin = s.pin(cmp.Or(f.Worker.Platform, "linux/"+runtime.GOARCH))
	deps.Hidden = []*builder.Redactor{s.registry.Redactor(), builder.NewRedactor(s.hidden...)}
	deps.Metrics, deps.Log = trigger.NewMetrics(reg), log
	return trigger.New(trigger.Config{
		Name: f.name(), Place: cmp.Or(f.Trigger.Place, s.runner.place), Scope: prefix, Slots: f.Trigger.Slots, Lease: f.Worker.Lease,
		SoftStop: f.Worker.SoftStop, Timeout: f.Trigger.Timeout, MaxAttempts: f.Trigger.MaxAttempts, Lost: f.Trigger.Lost,
		LogSubject: bus.Subjects().RunLog, Function: rules,
	}, deps)
}

// runPorts binds to what a trigger needs of the servers.
func runPorts(ctx context.Context, bus *natsbus.Bus) (trigger.Deps, error) {
	var errs [4]error
	var requests, cancels, builds *natsbus.Queue
	var known *natsbus.Runs
	requests, errs[0] = bound(ctx, bus.RunRequests)
	cancels, errs[1] = bound(ctx, bus.RunCancels)
	builds, errs[2] = bound(ctx, bus.RunBuilds)
	known, errs[3] = bound(ctx, bus.Runs)
	if err := errors.Join(errs[:]...); err != nil {
		return trigger.Deps{}, err
	}
	return trigger.Deps{
		Requests: queue{requests}, Cancels: queue{cancels}, Builds: queue{builds}, Publisher: bus, History: stream{bus},
		Runs: knownRuns{store{known}, known}, Logs: runLogs{bus.RunLogs()},
	}, nil
}

// pin finds out the digest of an image that is not built.
func (s *service) pin(platform string) trigger.Pin {
	return func(ctx context.Context, image, secret string) (string, error) {
		ref, err := name.ParseReference(image)
		if err != nil {
			return "", builder.Errorf(builder.KindInvalidRequest, "looking for the image", "%q is not an image: %w", image, err)
		}
		found, err := s.registry.With(secret).Resolve(ctx, image, platform)
		if err != nil {
			return "", err
		}
		return ref.Context().Name() + "@" + found.Digest, nil
	}
}

// Run runs worker and trigger until ctx ends and both have stopped.
func (s *service) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	var errs [2]error
	parts.Go(func() { errs[0] = s.worker.Run(ctx) })
	if s.trigger != nil {
		parts.Go(func() { errs[1] = s.trigger.Run(ctx) })
	}
	parts.Wait()
	return errors.Join(errs[:]...)
}

// Interrupt stops both at once.
func (s *service) Interrupt() {
	s.worker.Interrupt()
	if s.trigger != nil {
		s.trigger.Interrupt()
	}
}
