package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

type cancelCmd struct {
	NATS   cli.NATSFlags `embed:"" prefix:"nats-"`
	ID     string        `arg:"" help:"Run id, request id, or build id for every request that waits for the build."`
	Reason string        `env:"-" default:"canceled by the user" help:"What build.canceled says as its reason."`
	Detach bool          `env:"-" short:"d" help:"Do not wait for the end of the request."`
	Wait   time.Duration `env:"-" default:"1m" placeholder:"DURATION" help:"Give up waiting after this time."`
	Output string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text, or json: the terminal event's data."`
}

// Help is shown below the flags.
func (cancelCmd) Help() string {
	return `Publishes build.cancel, or run.cancel for the id of a run. A request that waits never starts, one that is being built is
stopped, unless others wait for the same build, which then goes on for them. The exit
code is 0 when the request is canceled and 1 when it came too late.

Examples:
  kiln cancel 3Q4M2Z7K5X
  kiln cancel 3Q4M2Z7K5X --reason 'wrong base image'
  kiln cancel 7d3f… # a build id of 64 digits: all that wait for the build`
}

var buildIDPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Run publishes the cancel and tells how the request ended.
func (c *cancelCmd) Run(ctx context.Context, s cli.Streams, top *cli.Globals) error {
	kiln, closeClient, err := c.NATS.Client(s, top)
	if err != nil {
		return err
	}
	defer closeClient()
	status, run, err := lookUpAny(ctx, kiln, c.ID)
	if err != nil {
		return err
	}
	if run != nil {
		return c.cancelRun(ctx, s, kiln)
	}
	cancel := events.BuildCancel{RequestID: c.ID, Reason: c.Reason}
	if status.RequestID != c.ID && buildIDPattern.MatchString(c.ID) {
		cancel = events.BuildCancel{BuildID: c.ID, Reason: c.Reason}
	}
	if err := kiln.Cancel(ctx, cancel); err != nil {
		if _, invalid := errors.AsType[*events.DecodeError](err); invalid {
			return cli.Usage(cli.Describe(err))
		}
		return err
	}
	if c.Detach {
		return nil
	}
	ctx, stop := context.WithTimeoutCause(ctx, c.Wait, fmt.Errorf("request %s did not end within %s: is a worker running? kiln status %s", status.RequestID, c.Wait, status.RequestID))
	defer stop()
	result, err := kiln.Await(ctx, client.Ticket{ID: status.RequestID})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return c.tell(s, result)
}

// tell prints how the request ended; too late is an error.
func (c *cancelCmd) tell(s cli.Streams, r client.Result) error {
	if c.Output == "json" {
		if err := cli.WriteJSON(s.Out, dataOf(r)); err != nil {
			return err
		}
	} else {
		if r.Canceled == nil {
			fmt.Fprintln(s.Out, "too late: the request had ended")
		}
		printResult(s.Out, r, false)
	}
	if r.Canceled == nil {
		return &cli.ExitError{Code: cli.ExitFailed}
	}
	return nil
}
