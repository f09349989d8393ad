// Command demo holds what demo.sh cannot do in a few lines of shell: pushing a base
// image, serving a package index, deriving the example for a machine without the
// internet, and running the image that came out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// command is one subcommand: its arguments for the usage text and its work.
type command struct {
	usage string
	run   func(ctx context.Context, args []string, out io.Writer) error
}

func commands() map[string]command {
	return map[string]command{
		"field":        {"KEY.KEY <JSON   print one field of a JSON document", runField},
		"function":     {"-base REF -requirements A,B FILE   print the function with these replaced", runFunction},
		"index":        {"[-addr HOST:PORT]   serve the demo's own packages, print the index URL", runIndex},
		"push-base":    {"REF LAYER.tar.gz   push an image of one layer, print its digest and size", runPushBase},
		"push-busybox": {"REF   push an image of this machine's /bin/busybox, print its digest and size", runPushBusybox},
		"reachable":    {"URL   end with 0 if the server answers within 3 seconds", runReachable},
		"run-image":    {"REF COMMAND...   run a command in the image, in a container without network", runImage},
		"size":         {"OUTCOME <STATUS   print the size of the image, fail if the outcome is another", runSize},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// dispatch runs the subcommand that args name.
func dispatch(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		if c, ok := commands()[args[0]]; ok {
			return c.run(ctx, args[1:], out)
		}
	}
	return errors.New(usage())
}

func usage() string {
	all := commands()
	var text strings.Builder
	text.WriteString("usage:")
	for _, n := range slices.Sorted(maps.Keys(all)) {
		text.WriteString("\n  " + n + " " + all[n].usage)
	}
	return text.String()
}

// parse reads flags and wants exactly n arguments, or at least -n if n is negative.
func parse(fs *flag.FlagSet, args []string, n int) ([]string, error) {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		return nil, fmt.Errorf("%s: %w", fs.Name(), err)
	}
	if got := fs.NArg(); n >= 0 && got != n || n < 0 && got < -n {
		return nil, fmt.Errorf("%s: usage: %s %s", fs.Name(), fs.Name(), commands()[fs.Name()].usage)
	}
	return fs.Args(), nil
}
