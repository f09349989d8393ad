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

type runsCmd struct{ listFlags }

// Help is shown below the flags.
func (runsCmd) Help() string {
	return `Lists runs, the newest last.

Examples:
  kiln runs
  kiln runs --since 1h --project demo -o json`
}

// Run prints the list.
func (c *runsCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	all, err := kiln.Runs(ctx, c.query())
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if all == nil {
			all = []client.RunStatus{}
		}
		return cli.WriteJSON(s.Out, all)
	}
	table := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RUN\tFUNCTION\tNAME\tSTATE\tRESULT\tREQUESTED")
	for _, r := range all {
		fmt.Fprintf(table, "%s\t%s/%s:%s\t%s\t%s\t%s\t%s\n", r.RunID, r.Function.Project, r.Function.Name, r.Function.Tag,
			dash(r.Name), r.State, resultOfRun(r), r.Requested.Local().Format(time.DateTime))
	}
	return table.Flush()
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func resultOfRun(s client.RunStatus) string {
	switch {
	case s.Completed != nil:
		return "exit code 0"
	case s.Failed != nil && s.Failed.ExitCode != nil:
		return fmt.Sprintf("exit code %d", *s.Failed.ExitCode)
	case s.Failed != nil:
		return s.Failed.Error.Code
	default:
		return "-"
	}
}

// dataOfRun is the terminal event's data.
func dataOfRun(r client.RunResult) any {
	switch {
	case r.Completed != nil:
		return r.Completed
	case r.Failed != nil:
		return r.Failed
	default:
		return r.Canceled
	}
}

// printRunResult prints what ended a run; nothing while nothing did.
func printRunResult(w io.Writer, r client.RunResult, tail bool) {
	switch {
	case r.Completed != nil:
		c := r.Completed
		fmt.Fprintf(w, "completed  attempt %d by %s on %s\n", c.Attempt, c.Runner, c.ImageRef)
		if len(c.Results) > 0 {
			fmt.Fprintf(w, "  results %s\n", c.Results)
		}
		printRunTimes(w, c.Timings)
	case r.Failed != nil:
		printRunFailed(w, r.Failed, tail)
	case r.Canceled != nil:
		fmt.Fprintf(w, "canceled  %s\n", r.Canceled.Reason)
	}
}

func printRunTimes(w io.Writer, t events.RunTimings) {
	if t.Ready.IsZero() || t.Started.IsZero() {
		return
	}
	fmt.Fprintf(w, "  time    image after %s, started %s later, ran %s\n", t.Ready.Sub(t.Requested).Round(time.Millisecond),
		t.Started.Sub(t.Ready).Round(time.Millisecond), t.Finished.Sub(t.Started).Round(time.Millisecond))
}

func printRunFailed(w io.Writer, f *events.RunFailed, tail bool) {
	fmt.Fprintf(w, "failed  %s: %s\n", f.Error.Code, f.Error.Message)
	for _, v := range f.Error.Violations {
		fmt.Fprintf(w, "  at      %s: %s\n", v.Path, v.Message)
	}
	fmt.Fprintf(w, "  hint    %s\n", f.Error.Hint)
	if tail && len(f.LogTail) > 0 {
		fmt.Fprintln(w, "  log")
		for _, line := range f.LogTail {
			fmt.Fprintln(w, "    "+line)
		}
	}
}

func printRunStatus(w io.Writer, s client.RunStatus) {
	fmt.Fprintf(w, "run      %s\nfunction %s/%s:%s\nstate    %s since %s\n", s.RunID,
		s.Function.Project, s.Function.Name, s.Function.Tag, s.State, s.Updated.Local().Format(time.DateTime))
	if s.Name != "" {
		fmt.Fprintf(w, "name     %s\n", s.Name)
	}
	if s.RequestID != "" {
		fmt.Fprintf(w, "build    request %s\n", s.RequestID)
	}
	if s.Attempt > 0 {
		fmt.Fprintf(w, "attempt  %d on %s\n", s.Attempt, s.ImageRef)
	}
	if s.Waiting != nil {
		fmt.Fprintf(w, "waiting  %s\n", s.Waiting.Why)
	}
	printRunResult(w, client.RunResult{Completed: s.Completed, Failed: s.Failed, Canceled: s.Canceled}, true)
}

// lookUpAny finds a request or build, else a run with the id.
func lookUpAny(ctx context.Context, kiln *client.Client, id string) (*client.Status, *client.RunStatus, error) {
	status, err := kiln.Status(ctx, id)
	if err == nil {
		return &status, nil, nil
	}
	if !errors.Is(err, client.ErrUnknown) {
		return nil, nil, err
	}
	run, err := kiln.RunStatus(ctx, id)
	if errors.Is(err, client.ErrUnknown) {
		return nil, nil, fmt.Errorf("there is no request, build or run %q (any more); `kiln ls` and `kiln runs` list what there is", id)
	}
	return nil, &run, err
}

// printRunLogs prints the output of a run, while it runs or afterwards.
func printRunLogs(ctx context.Context, kiln *client.Client, run client.RunStatus, attempt int, follow bool, out io.Writer) error {
	if ended := run.Completed != nil || run.Failed != nil || run.Canceled != nil; follow && run.State != client.StateRunning && !ended {
		err := kiln.WatchRun(ctx, client.Ticket{ID: run.RunID}, func(e events.Event) bool {
			started, ok := e.Data.(*events.RunStarted)
			if ok {
				run.State, run.Attempt = client.StateRunning, started.Attempt
			}
			return !ok
		})
		if err != nil {
			return err
		}
	}
	if run.Attempt == 0 {
		return fmt.Errorf("run %s has not started (state %s), so it has no log", run.RunID, run.State)
	}
	follow = follow && run.State == client.StateRunning
	if follow && attempt == 0 {
		attempt = run.Attempt
	}
	return kiln.RunLogs(ctx, run.RunID, attempt, follow, out)
}

// cancelRun cancels a run and tells how it ended.
func (c *cancelCmd) cancelRun(ctx context.Context, s cli.Streams, kiln *client.Client) error {
	if err := kiln.CancelRun(ctx, events.RunCancel{RunID: c.ID, Reason: c.Reason}); err != nil || c.Detach {
		return err
	}
	ctx, stop := context.WithTimeoutCause(ctx, c.Wait, fmt.Errorf("run %s did not end within %s: is a worker running that starts runs? kiln status %s", c.ID, c.Wait, c.ID))
	defer stop()
	result, err := kiln.AwaitRun(ctx, client.Ticket{ID: c.ID})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if c.Output == "json" {
		if err := cli.WriteJSON(s.Out, dataOfRun(result)); err != nil {
			return err
		}
	} else {
		if result.Canceled == nil {
			fmt.Fprintln(s.Out, "too late: the run had ended")
		}
		printRunResult(s.Out, result, false)
	}
	if result.Canceled == nil {
		return &cli.ExitError{Code: cli.ExitFailed}
	}
	return nil
}
