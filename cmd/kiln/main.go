// Command kiln turns ML function specs into container images.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"syscall"

	"github.com/alecthomas/kong"

	"kiln/builder/kube"
)

// Exit codes.
const (
	exitOK           = 0
	exitFailed       = 1 // a build failed, or the command could not do its work
	exitUsage        = 2 // bad flags, configuration or function file
	exitNoConnection = 3 // no NATS server
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
}

// streams are what a command talks through.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// exitError carries an exit code; a nil cause has been reported already.
type exitError struct {
	code  int
	cause error
}

// Error returns the cause's text.
func (e *exitError) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.cause.Error()
}

// Unwrap returns the cause.
func (e *exitError) Unwrap() error { return e.cause }

func usage(err error) error { return &exitError{code: exitUsage, cause: err} }

// cli is the command line.
type cli struct {
	ConfigFile kong.ConfigFlag  `name:"config" env:"KILN_CONFIG" placeholder:"FILE" help:"YAML file with the settings of the configuration table."`
	LogLevel   string           `default:"info" enum:"debug,info,warn,error" help:"Least level of log lines: debug, info, warn or error."`
	LogFormat  string           `default:"auto" enum:"auto,console,json" help:"Form of log lines; auto is console on a terminal and json elsewhere."`
	Version    kong.VersionFlag `env:"-" short:"v" help:"Print versions and exit."`

	Up          upCmd          `cmd:"" help:"Run everything on this machine: NATS, registry and a worker."`
	Build       buildCmd       `cmd:"" help:"Request an image and follow its build."`
	SparkImage  sparkImageCmd  `cmd:"" help:"Request the default image of Spark functions."`
	Plan        planCmd        `cmd:"" help:"Show what would be built, without building."`
	Status      statusCmd      `cmd:"" help:"Show what became of a request."`
	Logs        logsCmd        `cmd:"" help:"Print the log of a build."`
	Ls          lsCmd          `cmd:"" help:"List requests."`
	Worker      workerCmd      `cmd:"" help:"Run a worker on existing servers."`
	Doctor      doctorCmd      `cmd:"" help:"Say what builds still need."`
	Provision   provisionCmd   `cmd:"" help:"Create streams, consumer and ledger on a NATS server."`
	Context     contextCmd     `cmd:"" hidden:"" help:"Prepare a build inside its Pod."`
	ConfigTable configTableCmd `cmd:"" hidden:"" help:"Print the configuration table as Markdown."`
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, s streams) (code int) {
	type exited int
	defer func() {
		if r := recover(); r != nil {
			status, ok := r.(exited)
			if !ok {
				panic(r)
			}
			code = int(status)
		}
	}()
	var c cli
	parser, err := newParser(&c, kong.Writers(s.out, s.err), kong.Exit(func(status int) { panic(exited(status)) }))
	if err != nil {
		fmt.Fprintln(s.err, "kiln:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(s.err, "kiln: %v\n", err)
		fmt.Fprintln(s.err, "Run `kiln --help`, or `kiln COMMAND --help`.")
		return exitUsage
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return report(command.Run(s, &c), s)
}

// report prints an error and returns the exit code.
func report(err error, s streams) int {
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return exitOK
	}
	exit, ok := errors.AsType[*exitError](err)
	if !ok {
		exit = &exitError{code: exitFailed, cause: err}
	}
	if exit.cause != nil {
		fmt.Fprintf(s.err, "kiln: %v\n", exit.cause)
	}
	return exit.code
}

func newParser(c *cli, opts ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append([]kong.Option{
		kong.Name("kiln"),
		kong.Description("Kiln turns ML function specs into container images. Start with `kiln up`."),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}),
		kong.DefaultEnvars("KILN"),
		kong.Configuration(yamlSettings),
		kong.TypeMapper(reflect.TypeFor[size](), sizeMapper()),
		kong.Vars{
			"version": versions(), "plan_dir": kube.PlanDir, "workspace_dir": kube.WorkspaceDir(), "termination_log": kube.TerminationLog,
		},
	}, opts...)...)
}
