// Command kiln turns ML function specs into container images. It is the client, which
// starts fast; commands that run or plan builds are those of kilnd, which it becomes.
package main

import (
	"context"
	"os"

	"github.com/alecthomas/kong"

	"kiln/cmd/cli"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

// commands is the command line.
type commands struct {
	cli.Globals

	Up          daemonCmd     `cmd:"" passthrough:"" help:"${help_up}"`
	Build       buildCmd      `cmd:"" help:"Request an image and follow its build."`
	Run         runCmd        `cmd:"" help:"Run a function once its image exists, and follow it."`
	SparkImage  sparkImageCmd `cmd:"" help:"Request the default image of Spark functions."`
	Plan        daemonCmd     `cmd:"" passthrough:"" help:"${help_plan}"`
	Status      statusCmd     `cmd:"" help:"Show what became of a request or run."`
	Logs        logsCmd       `cmd:"" help:"Print the log of a build or run."`
	Ls          lsCmd         `cmd:"" help:"List requests."`
	Runs        runsCmd       `cmd:"" help:"List runs."`
	Cancel      cancelCmd     `cmd:"" help:"Cancel a run, a request, or all that wait for a build."`
	Redrive     redriveCmd    `cmd:"" help:"List or publish again requests that were given up."`
	Worker      daemonCmd     `cmd:"" passthrough:"" help:"${help_worker}"`
	Doctor      daemonCmd     `cmd:"" passthrough:"" help:"${help_doctor}"`
	Provision   daemonCmd     `cmd:"" passthrough:"" help:"${help_provision}"`
	Context     daemonCmd     `cmd:"" passthrough:"" hidden:"" help:"${help_context}"`
	ConfigTable daemonCmd     `cmd:"" passthrough:"" hidden:"" help:"${help_config_table}"`
}

// run executes one command line and returns its exit code; it does not return when the
// command is one of kilnd.
func run(ctx context.Context, args []string, s cli.Streams) int {
	var c commands
	parser, err := cli.Parser(&c, s, kong.Configuration(cli.OwnSettings))
	if err != nil {
		return cli.Report(err, s)
	}
	if command := daemonCommand(parser, args); command != "" {
		return cli.Report(becomeDaemon(command), s)
	}
	return cli.Run(ctx, parser, args, s, &c.Globals)
}
