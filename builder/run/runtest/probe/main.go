// Command probe is the program that the runs of the conformance suite execute.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"kiln/builder/run/runtest/steps"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	if slices.Contains(os.Args, "stay") {
		signal.Ignore(syscall.SIGTERM)
	}
	code := steps.Play(ctx, steps.World{
		Out: os.Stdout, Getenv: os.Getenv, ReadFile: os.ReadFile, Getwd: os.Getwd,
		WriteFile: func(name string, data []byte) error { return os.WriteFile(name, data, 0o600) },
		Kill: func(number int) {
			_ = syscall.Kill(os.Getpid(), syscall.Signal(number))
			select {}
		},
		Alloc: alloc, Fill: fill, Stay: func() { select {} },
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// alloc uses memory, page by page.
func alloc(mib int) error {
	all := make([]byte, mib<<20)
	for i := 0; i < len(all); i += 4096 {
		all[i] = 1
	}
	return nil
}

// fill writes files of 16 MiB.
func fill(mib int) error {
	block := make([]byte, 1<<20)
	for i := 0; i < mib; i += 16 {
		f, err := os.CreateTemp(".", "fill")
		if err != nil {
			return err
		}
		for range 16 {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
