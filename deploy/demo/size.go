package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
)

// status is what the demo needs of `kiln status -o json`.
type status struct {
	Completed *struct {
		Outcome  string `json:"outcome"`
		ImageRef string `json:"image_ref"`
	} `json:"completed"`
}

// runSize prints the size of the image of the status on standard input. It is an
// error if its outcome is another one than the demo promises.
func runSize(ctx context.Context, args []string, out io.Writer) error {
	rest, err := parse(flag.NewFlagSet("size", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	return size(ctx, os.Stdin, rest[0], out)
}

func size(ctx context.Context, in io.Reader, outcome string, out io.Writer) error {
	var s status
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fmt.Errorf("parse status: %w", err)
	}
	if s.Completed == nil || s.Completed.Outcome != outcome {
		return fmt.Errorf("the outcome is not %q: %+v", outcome, s.Completed)
	}
	img, err := pull(ctx, s.Completed.ImageRef)
	if err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	var bytes int64
	for _, layer := range manifest.Layers {
		bytes += layer.Size
	}
	fmt.Fprintf(out, "  size    %.1f MB compressed, in %d layers\n", float64(bytes)/1e6, len(manifest.Layers))
	return nil
}
