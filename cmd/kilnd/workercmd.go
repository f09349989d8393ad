package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"kiln/cmd/cli"
)

type workerCmd struct {
	NATS     cli.NATSFlags `embed:"" prefix:"nats-"`
	HTTPAddr string        `name:"http-addr" default:"127.0.0.1:9464" help:"Address of /healthz, /readyz and /metrics, or off."`
	Engine   string        `default:"sandbox" enum:"sandbox,kube" help:"What runs builds: sandbox, on this machine, or kube, as Kubernetes Jobs."`
	Kube     kubeFlags     `embed:"" prefix:"kube-"`
	buildFlags
}

// Help is shown below the flags.
func (workerCmd) Help() string {
	return `Connects to servers that exist, takes requests and builds images, in sandboxes on
this machine or as Kubernetes Jobs, until it is told to stop: SIGTERM lets running
builds go on for the soft-stop time, a second signal hands them back at once. Jobs go on
meanwhile, and the next worker joins them.

Examples:
  kiln worker --nats-url nats://nats.example.com:4222 --registry-url registry.example.com/team
  kiln worker --engine kube --kube-namespace builds --kube-image registry.example.com/kiln:v1
  KILN_WORKER_SLOTS=4 kiln worker --config /etc/kiln.yaml`
}

// Run runs the worker until a signal comes.
func (w *workerCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) error {
	log := c.Logger(s)
	nc, err := w.NATS.Connect(log)
	if err != nil {
		return err
	}
	defer nc.Close()
	monitor, err := newMonitor(ctx, w.HTTPAddr, connected(nc))
	if err != nil {
		return err
	}
	defer closeMonitor(monitor, log) //nolint:contextcheck // closing outlives the context that ended
	topology := topologyFlags{}.topology(w.NATS.Prefix)
	on := platform{w.sandbox, w.sandboxRunner}
	if w.Engine == "kube" {
		// Limits of Pods are those of their resource class.
		w.Sandbox = sandboxFlags{}
		on = platform{
			engine: func(ctx context.Context, _ string, s *service) (engine, error) { return w.kube(ctx, s, log) },
			runner: func(ctx context.Context, _ string, s *service) (runner, error) { return w.kubeRunner(ctx, s, log) },
		}
	}
	service, err := newService(ctx, w.buildFlags, filepath.Join(cli.DefaultDataDir(), "worker"), on, nc, topology, monitor.registry, log)
	if err != nil {
		return err
	}
	defer func() { _ = service.close() }()
	monitor.ready.Store(true)
	log.Info().Str("nats", cli.RedactURL(w.NATS.Server())).Int("slots", w.Worker.Slots).Str("http", monitor.addr).Msg("worker is ready")
	return untilSignal(ctx, service, log)
}

// untilSignal runs worker and trigger; the first signal is a soft stop, the second a hard one.
func untilSignal(ctx context.Context, w *service, log zerolog.Logger) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	finished := make(chan error, 1)
	go func() { finished <- w.Run(ctx) }()
	for count := 1; ; count++ {
		select {
		case err := <-finished:
			return err
		case sig := <-signals:
			if count == 1 {
				log.Info().Stringer("signal", sig).Msg("stopping; a second signal stops running builds at once")
				stop()
				continue
			}
			w.Interrupt()
		}
	}
}

func closeMonitor(m *monitor, log zerolog.Logger) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errors.New("closing took too long"))
	defer cancel()
	if err := m.close(ctx); err != nil {
		log.Warn().Err(fmt.Errorf("close HTTP server: %w", err)).Msg("stopping")
	}
}
