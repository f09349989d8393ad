package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/kube"
	"kiln/builder/registry"
	"kiln/builder/sandbox"
	"kiln/events"
	"kiln/events/natsbus"
	"kiln/worker"
)

// buildFlags configure what a worker does with requests; `up`, `worker` and `plan`
// share them.
type buildFlags struct {
	Registry registryFlags `embed:"" prefix:"registry-"`
	Pip      pipFlags      `embed:"" prefix:"pip-"`
	MLRun    mlrunFlags    `embed:"" prefix:"mlrun-"`
	Sandbox  sandboxFlags  `embed:"" prefix:"sandbox-"`
	Worker   workerFlags   `embed:"" prefix:"worker-"`
}

func (f buildFlags) function() function.Config {
	return function.Config{
		Registry: f.Registry.URL, DefaultBaseImage: f.MLRun.DefaultBaseImage, TargetNameTemplate: f.MLRun.TargetNameTemplate,
		MLRunVersionSpecifier: f.MLRun.VersionSpecifier, PipVersion: f.MLRun.PipVersion,
		ImageByKind: f.MLRun.ImageByKind, MaxTimeout: f.MLRun.MaxTimeout,
	}
}

func (f buildFlags) builder() builder.Config {
	return builder.Config{
		Platform: f.Worker.Platform, Timeout: f.Worker.Timeout,
		Limits: builder.Limits{
			Memory: int64(f.Sandbox.Memory), Disk: int64(f.Sandbox.Disk), CPU: f.Sandbox.CPUs, PIDs: f.Sandbox.PIDs,
		},
		Pip: builder.Pip{IndexURL: f.Pip.IndexURL, ExtraIndexURLs: f.Pip.ExtraIndexURLs, TrustedHosts: f.Pip.TrustedHosts},
	}
}

func (f buildFlags) registry() registry.Config {
	return registry.Config{DockerConfig: f.Registry.DockerConfig, Insecure: f.Registry.Insecure}
}

func (f buildFlags) workerConfig(subjects events.Subjects) worker.Config {
	name := f.Worker.Name
	if name == "" {
		host, _ := os.Hostname()
		name = fmt.Sprintf("%s-%d", cmp.Or(host, "worker"), os.Getpid())
	}
	return worker.Config{
		Name: name, Slots: f.Worker.Slots, Lease: f.Worker.Lease, SoftStop: f.Worker.SoftStop,
		MaxAttempts: f.Worker.MaxAttempts, LogSubject: subjects.Log, Function: f.function(),
	}
}

// executor finds the Kaniko executor.
func (f sandboxFlags) executor() (string, error) {
	if f.Executor != "" {
		return f.Executor, nil
	}
	var places []string
	if self, err := os.Executable(); err == nil {
		places = append(places, filepath.Join(filepath.Dir(self), "kaniko-executor"))
	}
	if onPath, err := exec.LookPath("kaniko-executor"); err == nil {
		places = append(places, onPath)
	}
	places = append(places, filepath.Join("bin", "kaniko-executor"))
	for _, place := range places {
		if info, err := os.Stat(place); err == nil && info.Mode().IsRegular() {
			return filepath.Abs(place)
		}
	}
	return "", errors.New("the Kaniko executor was not found; build it with `make build`, or name it with --sandbox-executor")
}

// engine is a builder.Engine that this process owns.
type engine interface {
	builder.Engine
	io.Closer
}

// sandbox returns the engine of this machine.
func (f buildFlags) sandbox(ctx context.Context, stateDir string) (engine, error) {
	executor, err := f.Sandbox.executor()
	if err != nil {
		return nil, err
	}
	return sandbox.New(ctx, sandbox.Config{
		Executor: executor, Runtime: f.Sandbox.Runtime, StateDir: cmp.Or(f.Sandbox.StateDir, stateDir), Root: f.Sandbox.Root,
		TmpfsBudget: int64(f.Sandbox.TmpfsBudget), DockerConfig: f.Registry.DockerConfig, Insecure: f.Registry.Insecure,
	})
}

// service is a worker with everything that it stands on.
type service struct {
	worker   *worker.Worker
	engine   engine
	registry *registry.Registry
}

// newService wires a worker, which owns the engine from here on. The topology must be
// provisioned.
func newService(ctx context.Context, f buildFlags, e engine, nc *nats.Conn, t natsbus.Topology, reg prometheus.Registerer, log zerolog.Logger) (*service, error) {
	images, err := registry.New(f.registry())
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	s := &service{engine: e, registry: images}
	if s.worker, err = s.newWorker(ctx, f, nc, t, reg, log); err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

func (s *service) newWorker(ctx context.Context, f buildFlags, nc *nats.Conn, t natsbus.Topology, reg prometheus.Registerer, log zerolog.Logger) (*worker.Worker, error) {
	b, err := builder.New(f.builder(), builder.Lookup{Registry: s.registry}, s.engine, s.registry.Secrets()...)
	if err != nil {
		return nil, err
	}
	if err := f.function().Validate(); err != nil {
		return nil, err
	}
	bus, err := natsbus.New(nc, t)
	if err != nil {
		return nil, err
	}
	bind, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	requests, err := bus.Queue(bind)
	if err != nil {
		return nil, err
	}
	if wait := requests.AckWait(); f.Worker.Lease > wait {
		return nil, usage(fmt.Errorf("--worker-lease %s is longer than the consumer's ack wait of %s: a running build would be given to another worker", f.Worker.Lease, wait))
	}
	book, err := bus.Ledger(bind)
	if err != nil {
		return nil, err
	}
	return worker.New(f.workerConfig(bus.Subjects()), worker.Deps{
		Queue: queue{requests}, Publisher: bus, Ledger: ledger{book}, Logs: bus.Logs(), Builder: b,
		Metrics: worker.NewMetrics(reg), Log: log,
	})
}

func (s *service) close() error {
	s.registry.Close()
	return s.engine.Close()
}

// queue adapts the transport to the worker's port.
type queue struct{ *natsbus.Queue }

// Next implements worker.Queue.
func (q queue) Next(ctx context.Context) (worker.Message, error) {
	d, err := q.Queue.Next(ctx)
	if d == nil {
		return nil, err
	}
	return d, err
}

// ledger adapts the transport's errors to the worker's.
type ledger struct{ *natsbus.Ledger }

// Get implements worker.Ledger.
func (l ledger) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	value, revision, err = l.Ledger.Get(ctx, key)
	return value, revision, workerError(err)
}

// Put implements worker.Ledger.
func (l ledger) Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	next, err := l.Ledger.Put(ctx, key, value, revision)
	return next, workerError(err)
}

func workerError(err error) error {
	switch {
	case errors.Is(err, natsbus.ErrNotFound):
		return worker.ErrNotFound
	case errors.Is(err, natsbus.ErrConflict):
		return worker.ErrConflict
	default:
		return err
	}
}

var (
	_ worker.Publisher = (*natsbus.Bus)(nil)
	_ worker.LogStore  = (*natsbus.LogStore)(nil)
	_ engine           = (*sandbox.Engine)(nil)
	_ engine           = (*kube.Engine)(nil)
	_ kube.Credentials = dockerLogins{}
)
