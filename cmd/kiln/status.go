package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

type statusCmd struct {
	NATS   cli.NATSFlags `embed:"" prefix:"nats-"`
	ID     string        `arg:"" help:"Request id, build id or run id."`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Help is shown below the flags.
func (statusCmd) Help() string {
	return `Shows what the events so far tell of a request, of the newest request of a build, or of
a run.

Examples:
  kiln status 3Q4M2Z7K5X
  kiln status 3Q4M2Z7K5X -o json`
}

// Run prints the status.
func (c *statusCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	status, run, err := lookUpAny(ctx, kiln, c.ID)
	switch {
	case err != nil:
		return err
	case c.Output == "json" && run != nil:
		return cli.WriteJSON(s.Out, run)
	case c.Output == "json":
		return cli.WriteJSON(s.Out, status)
	case run != nil:
		printRunStatus(s.Out, *run)
	default:
		printStatus(s.Out, *status)
	}
	return nil
}

func lookUp(ctx context.Context, kiln *client.Client, id string) (client.Status, error) {
	status, err := kiln.Status(ctx, id)
	if errors.Is(err, client.ErrUnknown) {
		return status, fmt.Errorf("there is no request or build %q (any more); `kiln ls` lists what there is", id)
	}
	return status, err
}

func printStatus(w io.Writer, s client.Status) {
	fmt.Fprintf(w, "request  %s\nfunction %s/%s:%s\nstate    %s since %s\n", s.RequestID,
		s.Function.Project, s.Function.Name, s.Function.Tag, s.State, s.Updated.Local().Format(time.DateTime))
	if s.BuildID != "" {
		fmt.Fprintf(w, "build    %s attempt %d\n", s.BuildID, s.Attempt)
	}
	if s.Queued != nil {
		fmt.Fprintf(w, "waiting  %s\n", waiting(s.Queued))
	}
	printResult(w, client.Result{Completed: s.Completed, Failed: s.Failed, Canceled: s.Canceled}, true)
}

type logsCmd struct {
	NATS    cli.NATSFlags `embed:"" prefix:"nats-"`
	ID      string        `arg:"" help:"Request id, build id or run id."`
	Follow  bool          `env:"-" short:"f" help:"Go on until the build or run ends."`
	Attempt int           `env:"-" help:"Print one attempt. Defaults to all."`
}

// Help is shown below the flags.
func (logsCmd) Help() string {
	return `Prints the log of a build: while it runs, after it ended, and for requests that
reused it; or the output of a run. --follow waits for what has not started yet.

Examples:
  kiln logs 3Q4M2Z7K5X
  kiln logs -f 3Q4M2Z7K5X`
}

// Run prints the log.
func (c *logsCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	found, run, err := lookUpAny(ctx, kiln, c.ID)
	if err != nil {
		return err
	}
	if run != nil {
		return printRunLogs(ctx, kiln, *run, c.Attempt, c.Follow, s.Out)
	}
	status := *found
	if c.Follow && status.State == client.StateQueued {
		if status, err = awaitBuild(ctx, kiln, status); err != nil {
			return err
		}
	}
	if status.BuildID == "" {
		return fmt.Errorf("request %s has no build (state %s), so it has no log", status.RequestID, status.State)
	}
	follow := c.Follow && status.State == client.StateBuilding
	attempt := c.Attempt
	if follow && attempt == 0 {
		attempt = status.Attempt
	}
	return kiln.Logs(ctx, status.BuildID, attempt, follow, s.Out)
}

// listFlags say what is listed.
type listFlags struct {
	NATS    cli.NATSFlags `embed:"" prefix:"nats-"`
	Since   time.Duration `env:"-" default:"24h" help:"How far to look back."`
	Project string        `env:"-" short:"p" help:"List one project."`
	Limit   int           `env:"-" short:"n" default:"50" help:"List the newest ones; 0 is all."`
	Output  string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
}

func (f listFlags) query() client.Query {
	return client.Query{Since: time.Now().Add(-f.Since), Project: f.Project, Limit: f.Limit}
}

type lsCmd struct{ listFlags }

// Help is shown below the flags.
func (lsCmd) Help() string {
	return `Lists requests, the newest last.

Examples:
  kiln ls
  kiln ls --since 1h --project demo -o json`
}

// Run prints the list.
func (c *lsCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	all, err := kiln.List(ctx, c.query())
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if all == nil {
			all = []client.Status{}
		}
		return cli.WriteJSON(s.Out, all)
	}
	table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REQUEST\tFUNCTION\tSTATE\tRESULT\tREQUESTED\tIMAGE")
	for _, r := range all {
		fmt.Fprintf(table, "%s\t%s/%s:%s\t%s\t%s\t%s\t%s\n", r.RequestID, r.Function.Project, r.Function.Name, r.Function.Tag,
			r.State, resultOf(r), r.Requested.Local().Format(time.DateTime), r.Image)
	}
	return table.Flush()
}

func resultOf(s client.Status) string {
	switch {
	case s.Completed != nil:
		return string(s.Completed.Outcome)
	case s.Failed != nil:
		return s.Failed.Error.Code
	case s.Queued != nil && s.Queued.Position > 0:
		return fmt.Sprintf("position %d", s.Queued.Position)
	default:
		return "-"
	}
}

// awaitBuild waits until the request's build runs or is decided.
func awaitBuild(ctx context.Context, kiln *client.Client, s client.Status) (client.Status, error) {
	err := kiln.Watch(ctx, client.Ticket{ID: s.RequestID}, func(e events.Event) bool { return e.Type == events.TypeBuildQueued })
	if err != nil {
		return s, err
	}
	return lookUp(ctx, kiln, s.RequestID)
}
