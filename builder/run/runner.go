package run

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"kiln/builder"
)

// Runner executes runs. Implementations are safe for concurrent use and pass the suite
// in builder/run/runtest.
//
// Every error is a *builder.Error: KindUnavailable is worth another attempt, every other
// kind is final. A process that ends with a code other than 0 is no error.
type Runner interface {
	// Run starts the plan's process, or attaches to it when the same RunID and Attempt
	// was started before, and blocks until it ends. It never starts the same attempt
	// twice, not even after the death of the process that called it and not when the
	// attempt has ended: its Result is kept until Forget.
	//
	// When ctx is canceled with cause builder.ErrShutdown or builder.ErrLeaseLost the
	// process goes on, and the error is of KindInterrupted. Any other cancel ends it (a
	// deadline: KindTimeout, else KindCanceled) and cleans up.
	//
	// KindInterrupted without such a cancel says that it cannot be told whether the
	// process runs: ask again for the same attempt, and start no other.
	Run(ctx context.Context, plan Plan, watch Watch) (Result, error)
	// Forget removes what is kept of an attempt, running or ended. It is no error when
	// there is nothing.
	Forget(ctx context.Context, runID string, attempt int) error
	// Name is the wire name of the runner: "sandbox", "kube", "fake".
	Name() string
}

// Watch is what a caller sees of a run while it goes on.
type Watch struct {
	// Logs takes the process's output and what the runner says about it, as whole lines,
	// by one goroutine at a time and never after Run returned. An attached caller gets
	// the lines from the beginning. A failing writer does not fail the run.
	Logs io.Writer
	// Started is called once when the process runs, with the time of its start. Nil is
	// allowed.
	Started func(time.Time)
}

// Result is how the process ended.
type Result struct {
	// ExitCode is the process's, or 128 and the number of the signal that ended it.
	ExitCode int
	// Started and Finished are the times of the process, in UTC.
	Started, Finished time.Time
	// Results is a JSON object of what the function handed back; nil: nothing. At most
	// MaxResults bytes.
	Results json.RawMessage
}

// MaxResults bounds Result.Results, in bytes.
const MaxResults = 32 << 10

// Plan is everything that a runner needs to start a process. It is a pure value.
type Plan struct {
	// RunID identifies the run (64 hex digits); Attempt counts its starts, from 1.
	RunID   string
	Attempt int
	// Image is "repository@sha256:…".
	Image string
	// RegistrySecret names the registry credentials that go before the configured ones.
	RegistrySecret string
	// Commands are what may be run, in the order of preference: the first one whose
	// program the image has is taken.
	Commands []Command
	// Env is what the process sees, in the order of names, over the image's own.
	Env []Var
	// Secrets are as Env, but are never shown and never stored in clear where others
	// can read them.
	Secrets []Var
	// Files are put into the process's file system at absolute paths of their own.
	Files []File
	// Workdir is absolute; empty: the image's.
	Workdir string
	// Source is fetched into Source.Target when the run starts (load_source_on_run); nil:
	// none. It is pinned.
	Source *builder.Source
	// SourceEnv holds the variables that credentials for Source are taken from.
	SourceEnv map[string]string
	// Limits bound the process. Zero values mean the runner's default.
	Limits builder.Limits
	// GPUs is the number of GPUs that are asked for by resource name.
	GPUs map[string]int64
	// Scheduling is the function's.
	Scheduling builder.Scheduling
	// Project, Function and Name say whose run it is.
	Project, Function, Name string
	// Labels are the run's own.
	Labels map[string]string
}

// Command is a program and its arguments.
type Command struct {
	// Needs is the program that has to be there, a name that is looked up in the image's
	// PATH or an absolute path. Empty: it is taken in any case.
	Needs string
	// Args are the program and its arguments. Empty: the image's own entrypoint and
	// command.
	Args []string
	// Env is added to the plan's when this command is taken.
	Env []Var
}

// Var is an environment variable.
type Var struct{ Name, Value string }

// File is a file for the process. Path is absolute and clean.
type File struct {
	Path string
	Data []byte
	Mode uint32
}
