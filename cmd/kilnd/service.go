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

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"sigs.k8s.io/yaml"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/nuclio"
	"kiln/builder/nuclio/dashboard"
	"kiln/builder/registry"
	"kiln/builder/sandbox"
	"kiln/builder/secrets"
	"kiln/builder/source"
	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/natsbus"
	"kiln/worker"
	"kiln/worker/trigger"
)

// buildFlags configure what a worker does with requests; `up`, `worker` and `plan`
// share them.
type buildFlags struct {
	Registry registryFlags `embed:"" prefix:"registry-"`
	Pip      pipFlags      `embed:"" prefix:"pip-"`
	MLRun    mlrunFlags    `embed:"" prefix:"mlrun-"`
	Nuclio   nuclioFlags   `embed:"" prefix:"nuclio-"`
	Secrets  secretsFlags  `embed:"" prefix:"secrets-"`
	Sources  sourceFlags   `embed:"" prefix:"source-"`
	Sandbox  sandboxFlags  `embed:"" prefix:"sandbox-"`
	Worker   workerFlags   `embed:"" prefix:"worker-"`
	Trigger  triggerFlags  `embed:"" prefix:"trigger-"`
}

func (f buildFlags) function() (function.Config, error) {
	m := f.MLRun
	projects, err := readProjects(m.ProjectsFile)
	if err != nil {
		return function.Config{}, cli.Usage(err)
	}
	return function.Config{
		Registry: f.Registry.URL, RegistrySecret: f.Registry.Secret, DefaultBaseImage: m.DefaultBaseImage,
		TargetNameTemplate: m.TargetNameTemplate, WithMLRun: m.WithMLRun, MLRunVersion: m.ServerVersion, MLRunPackage: m.Package,
		MLRunVersionSpecifier: m.VersionSpecifier, ImagesTag: m.ImagesTag, ImagesRegistry: m.ImagesRegistry,
		VendorImagesRegistry: m.VendorImagesRegistry, ImagesToEnrich: m.ImagesToEnrichRegistry, PipVersion: m.PipVersion,
		ImageByKind: m.ImageByKind, SourceOwner: m.SourceOwner, NodeSelector: m.NodeSelector, ServiceAccount: m.ServiceAccount,
		Projects: projects, MaxTimeout: m.MaxTimeout,
		Spark: function.Spark{Image: m.SparkAppImage, Tag: m.SparkAppImageTag},
		Nuclio: nuclio.Config{
			Namespace: f.Nuclio.Namespace, Runtime: f.Nuclio.Runtime, Version: f.Nuclio.Version,
			ImagePullSecret: f.Nuclio.ImagePullSecret, BuildSecret: f.Nuclio.BuildSecret, V3IOAPI: f.Nuclio.V3IOAPI,
		},
	}, nil
}

// readProjects reads the defaults of projects. Keys that are none are refused.
func readProjects(file string) (map[string]function.Project, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read the defaults of projects: %w", err)
	}
	var projects map[string]function.Project
	if err := yaml.UnmarshalStrict(text, &projects); err != nil {
		return nil, fmt.Errorf("defaults of projects in %s: %w", file, err)
	}
	return projects, nil
}

func (f buildFlags) builder() (builder.Config, error) {
	pip, err := f.Pip.pip()
	return builder.Config{
		Platform: f.Worker.Platform, Timeout: f.Worker.Timeout,
		Limits: builder.Limits{
			Memory: int64(f.Sandbox.Memory), Disk: int64(f.Sandbox.Disk), CPU: f.Sandbox.CPUs, PIDs: f.Sandbox.PIDs,
		},
		Pip: pip, DefaultArgs: f.MLRun.BuildArgs,
	}, err
}

func (f buildFlags) workerConfig(subjects events.Subjects, rules function.Config) worker.Config {
	return worker.Config{
		Name: f.name(), Slots: f.Worker.Slots, Lease: f.Worker.Lease, SoftStop: f.Worker.SoftStop,
		TotalLimit: f.Worker.MaxInFlight, ProjectLimit: f.Worker.MaxPerProject, QueueLimit: f.Worker.MaxQueued,
		Ageing: f.Worker.Ageing, Classes: f.Worker.Classes.classes(),
		MaxAttempts: f.Worker.MaxAttempts, LogSubject: subjects.Log, Function: rules,
	}
}

// name tells this process apart from others.
func (f buildFlags) name() string {
	if f.Worker.Name != "" {
		return f.Worker.Name
	}
	host, _ := os.Hostname()
	return fmt.Sprintf("%s-%d", cmp.Or(host, "worker"), os.Getpid())
}

// secrets is where the secrets of projects are.
func (f buildFlags) secrets() (*secrets.Store, error) {
	store, err := secrets.New(secrets.Config{Dir: f.Secrets.Dir, Environ: os.Environ()})
	if err != nil {
		return nil, cli.Usage(err)
	}
	return store, nil
}

func (f buildFlags) outside() (o outside, err error) {
	if o.secrets, err = f.secrets(); err != nil || f.Nuclio.DashboardURL == "" {
		return o, err
	}
	client, err := dashboard.New(dashboard.Config{URL: f.Nuclio.DashboardURL})
	if err != nil {
		return o, cli.Usage(err)
	}
	o.nuclio, o.hidden = client, client.Secrets()
	return o, nil
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

// sandbox makes the engine of this machine.
func (f buildFlags) sandbox(ctx context.Context, stateDir string, s *service) (engine, error) {
	executor, err := f.Sandbox.executor()
	if err != nil {
		return nil, err
	}
	return sandbox.New(ctx, sandbox.Config{
		Executor: executor, Runtime: f.Sandbox.Runtime, StateDir: cmp.Or(f.Sandbox.StateDir, stateDir), Root: f.Sandbox.Root,
		TmpfsBudget: int64(f.Sandbox.TmpfsBudget), Registries: s.registry, Sources: s.sources,
	})
}

// service is a worker, and a trigger of runs, with everything that they stand on.
type service struct {
	worker *worker.Worker
	// trigger is nil where no runs are started.
	trigger  *trigger.Trigger
	engine   engine
	runner   runner
	registry *registry.Registry
	sources  *source.Sources
	outside
}

// outside are the places beyond engine and registry that a worker needs.
type outside struct {
	secrets builder.SecretStore
	// nuclio is nil without a dashboard.
	nuclio worker.Nuclio
	// hidden must not be shown.
	hidden []string
}

// platform makes what executes builds, and what executes runs, which may use the registry
// and the sources of the service. Runner may be nil: there is none.
type platform struct {
	engine func(ctx context.Context, stateDir string, s *service) (engine, error)
	runner func(ctx context.Context, stateDir string, s *service) (runner, error)
}

// newService wires a worker. The topology must be provisioned.
func newService(ctx context.Context, f buildFlags, stateDir string, on platform, nc *nats.Conn, t natsbus.Topology, reg prometheus.Registerer, log zerolog.Logger) (*service, error) {
	beyond, err := f.outside()
	if err != nil {
		return nil, err
	}
	bus, err := natsbus.New(nc, t)
	if err != nil {
		return nil, err
	}
	s := &service{outside: beyond}
	if s.registry, err = registry.New(f.registry()); err == nil {
		s.sources, err = newSources(ctx, f, filepath.Join(filepath.Dir(stateDir), "sources"), bus)
	}
	if err == nil {
		var made engine
		if made, err = on.engine(ctx, stateDir, s); err == nil {
			s.engine, err = wrapEngine(made)
		}
	}
	if err == nil {
		s.worker, err = s.newWorker(ctx, f, bus, reg, log)
	}
	if err == nil {
		s.runner, err = s.newRunner(ctx, f, stateDir, on)
	}
	if err == nil && s.runner.Runner != nil {
		s.trigger, err = s.newTrigger(ctx, f, t.Prefix, bus, reg, log)
	}
	if err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

// newSources fetches code, with a cache in dir unless one is configured.
func newSources(ctx context.Context, f buildFlags, dir string, bus *natsbus.Bus) (*source.Sources, error) {
	contexts, err := bound(ctx, bus.Contexts)
	if err != nil {
		return nil, err
	}
	cfg, err := f.Sources.config(dir, contexts)
	if err != nil {
		return nil, err
	}
	return source.New(cfg)
}

func (s *service) newWorker(ctx context.Context, f buildFlags, bus *natsbus.Bus, reg prometheus.Registerer, log zerolog.Logger) (*worker.Worker, error) {
	cfg, err := f.builder()
	if err != nil {
		return nil, err
	}
	b, err := builder.New(cfg, builder.Lookup{Registry: s.registry, Sources: s.sources, Secrets: s.secrets}, s.engine, s.registry.Redactor(), builder.NewRedactor(s.hidden...))
	if err != nil {
		return nil, err
	}
	rules, err := f.function()
	if err != nil {
		return nil, err
	}
	if err := rules.Validate(); err != nil {
		return nil, err
	}
	requests, err := bound(ctx, bus.Queue)
	if err != nil {
		return nil, err
	}
	if wait := requests.AckWait(); f.Worker.Lease > wait {
		return nil, cli.Usage(fmt.Errorf("--worker-lease %s is longer than the consumer's ack wait of %s: a running build would be given to another worker", f.Worker.Lease, wait))
	}
	book, err := bound(ctx, bus.Ledger)
	if err != nil {
		return nil, err
	}
	cancels, err := bound(ctx, bus.Cancels)
	if err != nil {
		return nil, err
	}
	unfinished, err := bound(ctx, bus.Backlog)
	if err != nil {
		return nil, err
	}
	made, err := worker.New(f.workerConfig(bus.Subjects(), rules), worker.Deps{
		Queue: queue{requests}, Cancels: queue{cancels}, Publisher: bus, Ledger: ledger{store{book}, book},
		Backlog: unfinishedRequests{store{unfinished}, unfinished},
		History: stream{bus}, Logs: bus.Logs(), Builder: b,
		Nuclio: s.nuclio, Metrics: worker.NewMetrics(reg), Log: log,
	})
	if err != nil {
		return nil, err
	}
	pending := func(ctx context.Context) (uint64, error) {
		n, err := requests.Pending(ctx)
		return n + uint64(made.Waiting()), err //nolint:gosec // never negative
	}
	if err := worker.RegisterQueueGauge(reg, pending); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return made, nil
}

// close closes what there is, the engine before what it uses.
func (s *service) close() error {
	var err error
	if s.engine != nil {
		err = s.engine.Close()
	}
	if s.runner.Closer != nil {
		err = errors.Join(err, s.runner.Close())
	}
	if s.sources != nil {
		err = errors.Join(err, s.sources.Close())
	}
	if s.registry != nil {
		s.registry.Close()
	}
	return err
}
