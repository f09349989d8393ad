package main

import (
	"context"

	"kiln/builder/function"
	"kiln/cmd/cli"
	"kiln/events"
)

type sparkImageCmd struct {
	NATS         cli.NATSFlags `embed:"" prefix:"nats-"`
	Kind         string        `env:"-" required:"" enum:"spark,remote-spark" help:"spark (the Spark operator) or remote-spark (a Spark service)."`
	GPU          bool          `env:"-" name:"gpu" help:"The image for functions with GPUs, of kind spark."`
	Project      string        `env:"-" default:"default" help:"Project that the request is counted to."`
	MLRunVersion string        `env:"-" name:"mlrun-version" placeholder:"TEXT" help:"Requirement for mlrun, for example mlrun==1.7.0."`
	NoCache      bool          `env:"-" help:"Build again even when an identical build is finished."`
	Wait         bool          `env:"-" help:"Follow the build until the image is there."`
	Output       string        `env:"-" short:"o" enum:"text,json" default:"text" help:"text, or json: the terminal event's data, or without --wait the request's id."`
}

// Help is shown below the flags.
func (sparkImageCmd) Help() string {
	return `Requests the image that Spark functions run on when they say use_default_image:
.spark-job-default-image, with --gpu .spark-job-default-image-cuda, or
.remote-spark-default-image. Its base is the worker's mlrun.spark_app_image with
mlrun.spark_app_image_tag, and mlrun is put into it. A request builds only when the
base, the version of mlrun or a setting has changed since the last one; so it is safe
to repeat this, for example after every upgrade.

Examples:
  kiln spark-image --kind spark --wait
  kiln spark-image --kind spark --gpu --wait -o json
  kiln spark-image --kind remote-spark`
}

// Run publishes the request and, if asked, follows it.
func (p *sparkImageCmd) Run(ctx context.Context, s cli.Streams, c *cli.Globals) error {
	request, err := p.request()
	if err != nil {
		return cli.Usage(err)
	}
	b := buildCmd{NATS: p.NATS, Detach: !p.Wait, Output: p.Output}
	return b.submit(ctx, s, c, request, nil)
}

func (p *sparkImageCmd) request() (events.BuildRequest, error) {
	object, err := function.SparkImage(p.Kind, p.Project, p.GPU)
	if err != nil {
		return events.BuildRequest{}, err
	}
	request := events.BuildRequest{Function: object, MLRunVersionSpecifier: p.MLRunVersion}
	if p.Kind == function.KindSpark {
		request.WithMLRun = new(events.Flag(true))
	}
	request.Options.NoCache = p.NoCache
	return request, nil
}
