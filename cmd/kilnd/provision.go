package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/cmd/cli"
	"kiln/events/natsbus"
)

type provisionCmd struct {
	NATS   cli.NATSFlags `embed:"" prefix:"nats-"`
	Stream topologyFlags `embed:"" prefix:"stream-"`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"Form of the report: text or json."`
	Write  string        `env:"-" type:"path" placeholder:"DIR" help:"Write what would be created as files for the nats CLI, and each role's permissions for the server, and talk to no server."`
}

// Help is shown below the flags.
func (provisionCmd) Help() string {
	return `Creates what is missing and compares what exists. A difference is printed and
nothing is changed; the exit code is 1 then.

Examples:
  kiln provision
  kiln provision --nats-url nats://nats.example.com:4222 --stream-replicas 3
  kiln provision --write deploy/nats --nats-prefix acme`
}

// Run provisions the server.
func (p *provisionCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) error {
	if p.Write != "" {
		return p.writeFiles(s)
	}
	nc, err := p.NATS.Connect(c.Logger(s))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	report, err := natsbus.Provision(ctx, js, p.Stream.topology(p.NATS.Prefix))
	if err != nil {
		return err
	}
	if p.Output == "json" {
		return cli.WriteJSON(s.Out, report)
	}
	for _, what := range report.Created {
		fmt.Fprintln(s.Out, "created  ", what)
	}
	for _, what := range report.Unchanged {
		fmt.Fprintln(s.Out, "unchanged", what)
	}
	return nil
}

// writeFiles replaces the files of the topology in a folder.
func (p *provisionCmd) writeFiles(s cli.Streams) error {
	files, err := p.Stream.topology(p.NATS.Prefix).Files()
	if err != nil {
		return cli.Usage(err)
	}
	if err := os.MkdirAll(p.Write, 0o750); err != nil {
		return fmt.Errorf("write definitions: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(p.Write, name)
		if err := os.WriteFile(path, files[name], 0o600); err != nil {
			return fmt.Errorf("write definitions: %w", err)
		}
		fmt.Fprintln(s.Out, "wrote    ", path)
	}
	return nil
}

func (f topologyFlags) topology(prefix string) natsbus.Topology {
	return natsbus.Topology{
		Prefix: prefix, Replicas: f.Replicas, MaxAge: f.MaxAge, LogMaxAge: f.LogMaxAge, ContextMaxAge: f.ContextMaxAge, AckWait: f.AckWait,
		MaxAckPending: f.MaxAckPending, DuplicateWindow: f.DuplicateWindow,
	}
}
