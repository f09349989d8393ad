package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

type redriveCmd struct {
	NATS   cli.NATSFlags `embed:"" prefix:"nats-"`
	IDs    []string      `arg:"" optional:"" name:"id" help:"Requests to publish again. Without any, those that were given up are listed."`
	All    bool          `env:"-" help:"Publish all of them again."`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Help is shown below the flags.
func (redriveCmd) Help() string {
	return `Requests that failed as unavailable after all attempts are kept as build.dead. This
lists them, or publishes some again under ids of their own (ID.redrive.1), once the
cause is mended. Doing so twice publishes once.

Examples:
  kiln redrive
  kiln redrive 3Q4M2Z7K5X
  kiln redrive --all -o json`
}

// Run lists or publishes again.
func (c *redriveCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	if c.All && len(c.IDs) > 0 {
		return cli.Usage(errors.New("give request ids or --all, not both"))
	}
	if len(c.IDs) > 0 {
		return c.redrive(ctx, s, kiln, c.IDs)
	}
	dead, err := kiln.Dead(ctx)
	if err != nil {
		return err
	}
	if !c.All {
		return c.list(s, dead)
	}
	ids := make([]string, 0, len(dead))
	for _, d := range dead {
		ids = append(ids, d.RequestID)
	}
	return c.redrive(ctx, s, kiln, ids)
}

func (c *redriveCmd) list(s cli.Streams, dead []*events.BuildDead) error {
	if c.Output == "json" {
		if dead == nil {
			dead = []*events.BuildDead{}
		}
		return cli.WriteJSON(s.Out, dead)
	}
	table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REQUEST\tFUNCTION\tATTEMPTS\tGIVEN UP\tERROR")
	for _, d := range dead {
		fmt.Fprintf(table, "%s\t%s/%s:%s\t%d\t%s\t%s\n", d.RequestID, d.Function.Project, d.Function.Name, d.Function.Tag,
			d.Attempts, d.Failed.Local().Format(time.DateTime), d.Error.Message)
	}
	return table.Flush()
}

// redriven is what is printed of a request that was published again.
type redriven struct {
	RequestID string `json:"request_id"`
	As        string `json:"as"`
}

func (c *redriveCmd) redrive(ctx context.Context, s cli.Streams, kiln *client.Client, ids []string) error {
	done := []redriven{}
	for _, id := range ids {
		ticket, err := kiln.Redrive(ctx, id)
		if errors.Is(err, client.ErrUnknown) {
			return fmt.Errorf("request %q is not among those that were given up; `kiln redrive` lists them", id)
		}
		if err != nil {
			return err
		}
		done = append(done, redriven{id, ticket.ID})
		if c.Output == "text" {
			fmt.Fprintf(s.Out, "%s is requested again as %s\n", id, ticket.ID)
		}
	}
	if c.Output == "json" {
		return cli.WriteJSON(s.Out, done)
	}
	return nil
}
