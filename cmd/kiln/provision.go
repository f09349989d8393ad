package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/builder"
	"kiln/events/natsbus"
)

type provisionCmd struct {
	NATS   natsFlags     `embed:"" prefix:"nats-"`
	Stream topologyFlags `embed:"" prefix:"stream-"`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"Form of the report: text or json."`
}

// Help is shown below the flags.
func (provisionCmd) Help() string {
	return `Creates what is missing and compares what exists. A difference is printed and
nothing is changed; the exit code is 1 then.

Examples:
  kiln provision
  kiln provision --nats-url nats://nats.example.com:4222 --stream-replicas 3`
}

// Run provisions the server.
func (p *provisionCmd) Run(ctx context.Context, s streams, c *cli) error {
	nc, err := p.NATS.connect(c.logger(s))
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
		return writeJSON(s.out, report)
	}
	for _, what := range report.Created {
		fmt.Fprintln(s.out, "created  ", what)
	}
	for _, what := range report.Unchanged {
		fmt.Fprintln(s.out, "unchanged", what)
	}
	return nil
}

// writeJSON prints one indented document.
func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// redactURL hides credentials in a URL.
func redactURL(text string) string { return builder.NewRedactor().Text(text) }
