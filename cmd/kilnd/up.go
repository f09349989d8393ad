package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"kiln/cmd/cli"
	"kiln/events/natsbus"
)

type upCmd struct {
	DataDir      string        `placeholder:"DIR" help:"Where everything is kept. Defaults to $XDG_DATA_HOME/kiln or ~/.local/share/kiln."`
	NATSAddr     string        `name:"nats-addr" default:"127.0.0.1:4222" help:"Loopback address of the NATS server; port 0 takes a free one."`
	RegistryAddr string        `default:"127.0.0.1:5000" help:"Loopback address of the registry; port 0 takes a free one."`
	HTTPAddr     string        `name:"http-addr" default:"127.0.0.1:9464" help:"Address of /healthz, /readyz and /metrics, or off."`
	Stream       topologyFlags `embed:"" prefix:"stream-"`
	buildFlags
}

// Help is shown below the flags.
func (upCmd) Help() string {
	return `Runs a NATS server with JetStream, an OCI registry and a worker in one process, all
on loopback and with their data under --data-dir, until it is stopped with Ctrl-C.

Examples:
  kiln up
  kiln up --data-dir /var/lib/kiln --worker-slots 4
  kiln up --nats-addr 127.0.0.1:0 --registry-addr 127.0.0.1:0 --http-addr off`
}

// Run runs everything until a signal comes.
func (u *upCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) (err error) {
	log := c.Logger(s)
	if u.DataDir == "" {
		u.DataDir = cli.DefaultDataDir()
	}
	if err := errors.Join(loopback(u.NATSAddr, "--nats-addr"), loopback(u.RegistryAddr, "--registry-addr")); err != nil {
		return cli.Usage(err)
	}
	unlock, err := lockDir(u.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	images, err := startRegistry(ctx, filepath.Join(u.DataDir, "registry"), u.RegistryAddr, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }() //nolint:contextcheck // closing outlives the context that ended
	if u.Registry.URL == "" {
		u.Registry.URL = images.Addr()
	}
	server, err := startNATS(filepath.Join(u.DataDir, "nats"), u.NATSAddr, log)
	if err != nil {
		return err
	}
	defer server.stop()
	return u.serve(ctx, s, log, images.Addr(), server)
}

// serve provisions the servers and runs a worker on them.
func (u *upCmd) serve(ctx context.Context, s cli.Streams, log zerolog.Logger, images string, server *natsServer) error {
	nc, err := server.connect(log)
	if err != nil {
		return err
	}
	defer nc.Close()
	bus, err := natsbus.New(nc, u.Stream.topology(""))
	if err != nil {
		return err
	}
	setup, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := natsbus.Provision(setup, bus.JetStream(), u.Stream.topology("")); err != nil {
		return err
	}
	monitor, err := newMonitor(ctx, u.HTTPAddr, connected(nc))
	if err != nil {
		return err
	}
	defer closeMonitor(monitor, log) //nolint:contextcheck // closing outlives the context that ended
	service, err := newService(ctx, u.buildFlags, filepath.Join(u.DataDir, "sandbox"), platform{u.sandbox, u.sandboxRunner}, nc, u.Stream.topology(""), monitor.registry, log)
	if err != nil {
		return err
	}
	defer func() { _ = service.close() }()
	monitor.ready.Store(true)
	where := cli.Addresses{NATSURL: server.url(), Registry: images, HTTP: monitor.addr, PID: os.Getpid()}
	file := filepath.Join(u.DataDir, cli.AddressFile)
	if err := writeAddresses(file, where); err != nil {
		return err
	}
	defer func() { _ = os.Remove(file) }()
	welcome(s.Out, where, u.DataDir)
	return untilSignal(ctx, service, log)
}

// welcome prints addresses and what to do next.
func welcome(out io.Writer, a cli.Addresses, dir string) {
	url := ""
	if dir != cli.DefaultDataDir() {
		url = " --nats-url " + a.NATSURL
	}
	fmt.Fprintf(out, `Kiln is up.
  NATS      %s
  registry  %s
  metrics   %s
  data      %s

Build an image, from another terminal:
  kiln build%s -f function.yaml
or from any language, by publishing the function:
  nats --server %s pub build.requested "$(cat function.json)"
  nats --server %s sub 'build.>'
Stop with Ctrl-C.
`, a.NATSURL, a.Registry, monitorURL(a.HTTP), dir, url, a.NATSURL, a.NATSURL)
}

func monitorURL(addr string) string {
	if addr == "" {
		return "off"
	}
	return "http://" + addr + "/metrics"
}

// writeAddresses replaces the file in one step.
func writeAddresses(file string, a cli.Addresses) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode addresses: %w", err)
	}
	if err := os.WriteFile(file+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	return nil
}

// lockDir creates the directory and makes sure that no other process uses it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(filepath.Clean(dir), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another `kiln up` uses %s; stop it, or choose another --data-dir", dir)
	}
	return func() { _ = f.Close() }, nil
}
