package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

// completed is what the demo shows of a build.completed event.
type completed struct {
	Outcome  string `json:"outcome"`
	Reason   string `json:"reason"`
	Image    string `json:"image"`
	Digest   string `json:"digest"`
	ImageRef string `json:"image_ref"`
	Timings  struct {
		Requested time.Time `json:"requested"`
		Finished  time.Time `json:"finished"`
		QueueMS   int64     `json:"queue_ms"`
		BuildMS   int64     `json:"build_ms"`
	} `json:"timings"`
}

// runDescribe prints the event on standard input for people. It is an error if the
// outcome is another one than the demo promises.
func runDescribe(ctx context.Context, args []string, out io.Writer) error {
	rest, err := parse(flag.NewFlagSet("describe", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	return describe(ctx, os.Stdin, rest[0], out)
}

func describe(ctx context.Context, in io.Reader, outcome string, out io.Writer) error {
	var c completed
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return fmt.Errorf("parse event: %w", err)
	}
	img, err := pull(ctx, c.ImageRef)
	if err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	var size int64
	for _, layer := range manifest.Layers {
		size += layer.Size
	}
	fmt.Fprintf(out, "  outcome  %s\n  reason   %s\n  image    %s\n  digest   %s\n  size     %.1f MB compressed, %d layers\n",
		c.Outcome, c.Reason, c.Image, c.Digest, float64(size)/1e6, len(manifest.Layers))
	answer := c.Timings.Finished.Sub(c.Timings.Requested)
	fmt.Fprintf(out, "  time     %d ms from the message to the answer: %d ms in the queue, %d ms of building\n",
		answer.Milliseconds(), c.Timings.QueueMS, c.Timings.BuildMS)
	if c.Outcome != outcome {
		return fmt.Errorf("the outcome is %q, want %q", c.Outcome, outcome)
	}
	return nil
}
