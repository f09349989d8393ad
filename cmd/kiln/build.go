package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

type buildCmd struct {
	NATS cli.NATSFlags `embed:"" prefix:"nats-"`
	cli.RequestFlags
	ID     string        `env:"-" placeholder:"TEXT" help:"Request id; the same request under the same id again does nothing. Defaults to a random one."`
	Follow *bool         `env:"-" xor:"follow" negatable:"" help:"Print the log and wait for the image (the default)."`
	Detach bool          `env:"-" short:"d" xor:"follow" help:"Print the request id and return at once."`
	Wait   time.Duration `env:"-" placeholder:"DURATION" help:"Give up waiting after this time; the request stays. Defaults to no limit."`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text, or json: the terminal event's data on standard output and nothing else there."`
}

// Help is shown below the flags.
func (buildCmd) Help() string {
	return `Publishes build.requested and follows the build. The exit code is 0 when the image is
there (built, reused or not needed), 1 when the build failed or was canceled, 2 for a
bad file or flag, 3 when no NATS server answers.

Examples:
  kiln build -f function.yaml
  kiln build -f function.json --no-cache -o json
  kiln build -f function.yaml --detach
  kiln build -f function.yaml --source ./src
  cat function.yaml | kiln build -f - --env GIT_TOKEN=$GIT_TOKEN
  kiln build --project-image --project demo --requirement 'pandas>=2,<3'
  kiln build --project-image -f project.yaml --base-image python:3.12`
}

// Run publishes the request and follows it.
func (b *buildCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) error {
	var preparing sync.WaitGroup
	defer preparing.Wait()
	preparing.Go(func() {
		// An error shows again where an event is checked.
		_ = events.Prepare(events.TypeBuildRequested, events.TypeBuildStarted, events.TypeBuildCompleted)
	})
	request, err := b.Request(s)
	if err != nil {
		return err
	}
	local, err := b.PackSource(&request)
	if err != nil {
		return cli.Usage(err)
	}
	defer local.Close()
	return b.submit(ctx, s, c, request, local)
}

// submit publishes a request, after its source if that is local, and follows it, as
// the flags say.
func (b *buildCmd) submit(ctx context.Context, s cli.Streams, c *cli.Globals, request events.BuildRequest, local *cli.LocalSource) error {
	kiln, closeClient, err := b.NATS.Client(s, c)
	if err != nil {
		return err
	}
	defer closeClient()
	ticket, err := send(ctx, kiln, local, b.ID, func(opts ...client.RequestOption) (client.Ticket, error) {
		return kiln.RequestBuild(ctx, request, opts...)
	})
	if err != nil {
		return err
	}
	if b.Detach {
		return detached(s, b.Output, "request_id", ticket)
	}
	if b.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, b.Wait, fmt.Errorf("the build was not finished after %s; it goes on: kiln status %s", b.Wait, ticket.ID))
		defer cancel()
	}
	result, err := b.follow(ctx, s, kiln, ticket)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return b.finish(s, result)
}

// detached prints what was published, under the name that its id has.
func detached(s cli.Streams, output, name string, t client.Ticket) error {
	if output == "json" {
		return cli.WriteJSON(s.Out, map[string]any{name: t.ID, "sequence": t.Sequence})
	}
	_, err := fmt.Fprintln(s.Out, t.ID)
	return err
}

// follow prints the log while it waits for the terminal event.
func (b *buildCmd) follow(ctx context.Context, s cli.Streams, kiln *client.Client, ticket client.Ticket) (client.Result, error) {
	out := s.Out
	if b.Output == "json" {
		out = s.Err
	}
	p := newProgress(s.Err, out, b.Output == "json", "still queued: is a worker running, and is it free?")
	defer p.stop()
	p.note("request " + ticket.ID + " is queued")

	var result client.Result
	var logs sync.WaitGroup
	logCtx, stopLogs := context.WithCancel(ctx)
	defer stopLogs()
	err := kiln.Watch(ctx, ticket, func(e events.Event) bool {
		switch data := e.Data.(type) {
		case *events.BuildQueued:
			p.queued(data)
		case *events.BuildStarted:
			p.building(data)
			if b.Follow == nil || *b.Follow {
				logs.Go(func() { _ = kiln.Logs(logCtx, data.BuildID, data.Attempt, true, p) })
			}
		case *events.BuildCompleted:
			result.Completed = data
		case *events.BuildFailed:
			result.Failed = data
		case *events.BuildCanceled:
			result.Canceled = data
		}
		return true
	})
	// The end of the log may come a moment after the event.
	grace := time.AfterFunc(3*time.Second, stopLogs)
	defer grace.Stop()
	logs.Wait()
	return result, err
}

// finish prints the result and turns it into the exit code.
func (b *buildCmd) finish(s cli.Streams, r client.Result) error {
	if b.Output == "json" {
		if err := cli.WriteJSON(s.Out, dataOf(r)); err != nil {
			return err
		}
	} else {
		printResult(s.Out, r, false)
	}
	if r.Completed == nil {
		return &cli.ExitError{Code: cli.ExitFailed}
	}
	return nil
}

// dataOf is the terminal event's data.
func dataOf(r client.Result) any {
	switch {
	case r.Completed != nil:
		return r.Completed
	case r.Failed != nil:
		return r.Failed
	default:
		return r.Canceled
	}
}

// printResult prints what ended a request; nothing while nothing did.
func printResult(w io.Writer, r client.Result, tail bool) {
	switch {
	case r.Completed != nil:
		printCompleted(w, r.Completed)
	case r.Failed != nil:
		printFailed(w, r.Failed, tail)
	case r.Canceled != nil:
		fmt.Fprintf(w, "canceled  %s\n", r.Canceled.Reason)
		if by := r.Canceled.SupersededBy; by != "" {
			fmt.Fprintf(w, "  by      request %s\n", by)
		}
	}
}

func printCompleted(w io.Writer, c *events.BuildCompleted) {
	fmt.Fprintf(w, "%s  %s\n", c.Outcome, c.Image)
	if c.Digest != "" {
		fmt.Fprintf(w, "  digest  %s\n  ref     %s\n  base    %s@%s\n", c.Digest, c.ImageRef, c.Base.Ref, c.Base.Digest)
	}
	fmt.Fprintf(w, "  why     %s\n  time    queued %s, built in %s, %s in all\n", c.Reason,
		milliseconds(c.Timings.QueueMS), milliseconds(c.Timings.BuildMS), c.Timings.Finished.Sub(c.Timings.Requested).Round(time.Millisecond))
}

func printFailed(w io.Writer, f *events.BuildFailed, tail bool) {
	fmt.Fprintf(w, "failed  %s: %s\n", f.Error.Code, f.Error.Message)
	for _, v := range f.Error.Violations {
		fmt.Fprintf(w, "  at      %s: %s\n", v.Path, v.Message)
	}
	fmt.Fprintf(w, "  hint    %s\n", f.Error.Hint)
	if !tail || len(f.LogTail) == 0 {
		return
	}
	fmt.Fprintln(w, "  log")
	for _, line := range f.LogTail {
		fmt.Fprintln(w, "    "+line)
	}
}

func milliseconds(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
