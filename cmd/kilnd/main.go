// Command kilnd runs and plans the builds of Kiln. Users call it as kiln, which hands
// these commands over to it.
package main

import (
	"context"
	"os"
	"reflect"
	"runtime/debug"

	"github.com/alecthomas/kong"

	"kiln/builder/kube"
	"kiln/cmd/cli"
)

func main() {
	// The heap is small, and collecting it was a tenth of what a request costs: some tens
	// of MiB more buy most of that back. GOGC says otherwise.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
	os.Exit(run(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// commands is the command line.
type commands struct {
	cli.Globals

	Up          upCmd          `cmd:"" help:"${help_up}"`
	Plan        planCmd        `cmd:"" help:"${help_plan}"`
	Worker      workerCmd      `cmd:"" help:"${help_worker}"`
	Doctor      doctorCmd      `cmd:"" help:"${help_doctor}"`
	Provision   provisionCmd   `cmd:"" help:"${help_provision}"`
	Context     contextCmd     `cmd:"" hidden:"" help:"${help_context}"`
	ConfigTable configTableCmd `cmd:"" hidden:"" help:"${help_config_table}"`
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, s cli.Streams) int {
	var c commands
	parser, err := newParser(&c, s)
	if err != nil {
		return cli.Report(err, s)
	}
	return cli.Run(ctx, parser, args, s, &c.Globals)
}

func newParser(c *commands, s cli.Streams) (*kong.Kong, error) {
	return cli.Parser(c, s,
		kong.Configuration(cli.Settings),
		kong.TypeMapper(reflect.TypeFor[size](), sizeMapper()),
		kong.Vars{"plan_dir": kube.PlanDir, "workspace_dir": kube.WorkspaceDir(), "termination_log": kube.TerminationLog},
	)
}
