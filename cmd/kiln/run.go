package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

type runCmd struct {
	NATS         cli.NATSFlags `embed:"" prefix:"nats-"`
	File         string        `env:"-" short:"f" required:"" placeholder:"FILE" help:"Function as YAML or JSON, as MLRun exports it; - is standard input."`
	Param        []string      `env:"-" short:"p" sep:"none" placeholder:"NAME=VALUE" help:"Parameter of the handler: a JSON value, else a text."`
	Handler      string        `env:"-" placeholder:"NAME" help:"What is called in the function's code."`
	Name         string        `env:"-" placeholder:"TEXT" help:"Name of the run. Defaults to the function's."`
	Project      string        `env:"-" placeholder:"NAME" help:"Project of the run. Defaults to the function's."`
	Arg          []string      `env:"-" sep:"none" placeholder:"TEXT" help:"Argument of the command, in place of the function's."`
	Env          []string      `env:"-" sep:"none" placeholder:"NAME=VALUE" help:"Environment of the run. No secrets: events can be read."`
	Input        []string      `env:"-" sep:"none" placeholder:"NAME=URL" help:"Input data."`
	Label        []string      `env:"-" sep:"none" placeholder:"NAME=VALUE" help:"Label of the run."`
	ArtifactPath string        `env:"-" placeholder:"URL" help:"Where artifacts go."`
	Workdir      string        `env:"-" placeholder:"PATH" help:"Working directory of the process."`
	Timeout      time.Duration `env:"-" placeholder:"DURATION" help:"Time limit of the run, from the start of its process."`
	AutoBuild    *bool         `env:"-" negatable:"" help:"Let an image be built that the function needs, or do not. Defaults to the function's spec.build.auto_build."`
	WithMLRun    *bool         `env:"-" name:"with-mlrun" negatable:"" help:"Put mlrun into the image, or do not."`
	Force        bool          `env:"-" help:"Build even when nothing seems to be needed."`
	NoCache      bool          `env:"-" help:"Build again even when an identical build is finished."`
	LocalSource  string        `env:"-" name:"source" placeholder:"PATH" help:"Folder or archive whose content goes into the image, as with kiln build."`
	ID           string        `env:"-" placeholder:"TEXT" help:"Run id; the same run under the same id again does nothing. Defaults to a random one."`
	Follow       *bool         `env:"-" xor:"follow" negatable:"" help:"Print the logs of build and run and wait for the end (the default)."`
	Detach       bool          `env:"-" short:"d" xor:"follow" help:"Print the run id and return at once."`
	Wait         time.Duration `env:"-" placeholder:"DURATION" help:"Give up waiting after this time; the run stays. Defaults to no limit."`
	Output       string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text, or json: the terminal event's data on standard output and nothing else there."`
}

// Help is shown below the flags.
func (runCmd) Help() string {
	return `Publishes run.requested and follows it: the image is built or reused where auto_build
says so, and the run starts the moment it is there. The exit code is 0 when the process
ended with 0, 1 when it did not, or the image could not be built, or the run was
canceled, 2 for a bad file or flag, 3 when no NATS server answers.

Examples:
  kiln run -f function.yaml --auto-build
  kiln run -f function.yaml --handler train --param epochs=10 --param 'layers=[64,32]'
  kiln run -f function.yaml --arg=--fast --env LEVEL=debug --detach
  kiln run -f function.yaml -o json --no-follow`
}

// Run publishes the run and follows it.
func (r *runCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) error {
	request, local, err := r.request(s)
	if err != nil {
		return cli.Usage(err)
	}
	defer local.Close()
	kiln, closeClient, err := r.NATS.Client(s, c)
	if err != nil {
		return err
	}
	defer closeClient()
	ticket, err := send(ctx, kiln, local, r.ID, func(opts ...client.RequestOption) (client.Ticket, error) {
		return kiln.RequestRun(ctx, request, opts...)
	})
	if err != nil {
		return err
	}
	if r.Detach {
		return detached(s, r.Output, "run_id", ticket)
	}
	return r.watch(ctx, s, kiln, ticket)
}

// watch follows the run to its end, or for as long as the user waits.
func (r *runCmd) watch(ctx context.Context, s cli.Streams, kiln *client.Client, ticket client.Ticket) error {
	if r.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.Wait, fmt.Errorf("the run was not finished after %s; it goes on: kiln status %s", r.Wait, ticket.ID))
		defer cancel()
	}
	result, err := r.follow(ctx, s, kiln, ticket)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if r.Output == "json" {
		if err := cli.WriteJSON(s.Out, dataOfRun(result)); err != nil {
			return err
		}
	} else {
		// The terminal event goes to where notes go: standard output is the function's.
		printRunResult(s.Err, result, result.Failed != nil && result.Failed.BuildError != nil)
	}
	if result.Completed == nil {
		return &cli.ExitError{Code: cli.ExitFailed}
	}
	return nil
}

// request is what the flags and the file say.
func (r *runCmd) request(s cli.Streams) (events.RunRequest, *cli.LocalSource, error) {
	build := cli.RequestFlags{File: r.File, WithMLRun: r.WithMLRun, Force: r.Force, NoCache: r.NoCache, LocalSource: r.LocalSource}
	image, err := build.Request(s)
	if err != nil {
		return events.RunRequest{}, nil, err
	}
	request := events.RunRequest{Run: events.RunSpec{
		Name: r.Name, Project: r.Project, Handler: r.Handler, Args: r.Arg, ArtifactPath: r.ArtifactPath, Workdir: r.Workdir,
	}}
	if r.Timeout > 0 {
		request.Run.Timeout = r.Timeout.String()
	}
	if r.AutoBuild != nil {
		request.AutoBuild = new(events.Flag(*r.AutoBuild))
	}
	if request.Run.Parameters, err = parameters(r.Param); err != nil {
		return request, nil, err
	}
	for _, m := range []struct {
		flag string
		from []string
		into *map[string]string
	}{{"--env", r.Env, &request.Run.Env}, {"--input", r.Input, &request.Run.Inputs}, {"--label", r.Label, &request.Run.Labels}} {
		if *m.into, err = pairs(m.flag, m.from); err != nil {
			return request, nil, err
		}
	}
	local, err := build.PackSource(&image)
	request.Function, request.WithMLRun, request.ForceBuild = image.Function, image.WithMLRun, image.ForceBuild
	request.MLRunVersionSpecifier, request.BuilderEnv, request.Options = image.MLRunVersionSpecifier, image.BuilderEnv, image.Options
	return request, local, err
}

func pairs(flag string, all []string) (map[string]string, error) {
	var out map[string]string
	for _, text := range all {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s %q is not NAME=VALUE", flag, text)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = value
	}
	return out, nil
}

// parameters are JSON values where they parse, else texts, as MLRun's command line reads
// them.
func parameters(all []string) (map[string]json.RawMessage, error) {
	texts, err := pairs("--param", all)
	if err != nil || texts == nil {
		return nil, err
	}
	out := make(map[string]json.RawMessage, len(texts))
	for name, text := range texts {
		if raw := json.RawMessage(text); json.Valid(raw) {
			out[name] = raw
			continue
		}
		quoted, err := json.Marshal(text)
		if err != nil {
			return nil, fmt.Errorf("--param %s: %w", name, err)
		}
		out[name] = quoted
	}
	return out, nil
}

// follow prints the log of the build, then that of the run, while it waits for the end.
func (r *runCmd) follow(ctx context.Context, s cli.Streams, kiln *client.Client, ticket client.Ticket) (client.RunResult, error) {
	quiet := r.Output == "json" || (r.Follow != nil && !*r.Follow)
	f := &runFollower{kiln: kiln, ticket: ticket, since: time.Now().Add(-time.Minute)}
	// What the build says is no output of the function.
	f.progress = newProgress(s.Err, s.Err, quiet, "not started yet: the image is unpacked, or no worker is free")
	f.out = io.Discard
	if !quiet {
		f.out = s.Out
	}
	defer f.progress.stop()
	f.progress.note("run " + ticket.ID + " is queued")
	return f.follow(ctx)
}

// runFollower prints what a run goes through.
type runFollower struct {
	kiln     *client.Client
	ticket   client.Ticket
	since    time.Time
	progress *progress
	out      io.Writer
	build    sync.WaitGroup
	logs     sync.WaitGroup
	result   client.RunResult
}

func (f *runFollower) follow(ctx context.Context) (client.RunResult, error) {
	logCtx, stopLogs := context.WithCancel(ctx)
	defer stopLogs()
	buildCtx, stopBuild := context.WithCancel(ctx)
	defer stopBuild()
	err := f.kiln.WatchRun(ctx, f.ticket, func(e events.Event) bool {
		switch data := e.Data.(type) {
		case *events.RunWaiting:
			f.progress.note(strings.TrimSuffix(data.Why, "."))
			f.build.Go(func() { f.watchBuild(buildCtx, data.RequestID) })
		case *events.RunStarted:
			f.endBuild(stopBuild)
			f.progress.running(data)
			f.logs.Go(func() { _ = f.kiln.RunLogs(logCtx, f.ticket.ID, data.Attempt, true, f.progress.to(f.out)) })
		case *events.RunCompleted:
			f.result.Completed = data
		case *events.RunFailed:
			f.result.Failed = data
		case *events.RunCanceled:
			f.result.Canceled = data
		}
		return true
	})
	f.endBuild(stopBuild)
	// The end of the log may come a moment after the event.
	grace := time.AfterFunc(3*time.Second, stopLogs)
	defer grace.Stop()
	f.logs.Wait()
	return f.result, err
}

// endBuild gives the build's log a moment to end.
func (f *runFollower) endBuild(stop context.CancelFunc) {
	grace := time.AfterFunc(time.Second, stop)
	defer grace.Stop()
	f.build.Wait()
}

// watchBuild prints how the build of the run's image goes.
func (f *runFollower) watchBuild(ctx context.Context, requestID string) {
	var logs sync.WaitGroup
	defer logs.Wait()
	_ = f.kiln.Watch(ctx, client.Ticket{ID: requestID, Since: f.since}, func(e events.Event) bool {
		switch data := e.Data.(type) {
		case *events.BuildQueued:
			f.progress.queued(data)
		case *events.BuildStarted:
			f.progress.building(data)
			logs.Go(func() { _ = f.kiln.Logs(ctx, data.BuildID, data.Attempt, true, f.progress) })
		case *events.BuildCompleted:
			f.progress.note("image " + string(data.Outcome) + ": " + strings.TrimSuffix(data.Reason, "."))
		}
		return true
	})
}
