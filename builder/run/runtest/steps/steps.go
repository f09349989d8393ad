// Package steps is the language of the program that the suite's runs execute: the probe
// plays it in containers, and runners without any play it themselves.
package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"
)

// World is what a probe's steps act on.
type World struct {
	Out    io.Writer
	Getenv func(string) string
	// ReadFile and WriteFile are those of package os, where there are files.
	ReadFile  func(string) ([]byte, error)
	WriteFile func(string, []byte) error
	Getwd     func() (string, error)
	// Kill ends the process by a signal and does not return, where there is one.
	Kill func(signal int)
	// Alloc uses so many MiB of memory, Fill writes so many MiB to a file.
	Alloc, Fill func(mib int) error
	// Stay waits until the process is killed.
	Stay func()
}

// ErrSignal is what Play ends with when it was signaled to end: exit code 143.
var ErrSignal = errors.New("terminated")

// Play plays the steps of a probe, the program that the suite's runs execute, and
// returns its exit code:
//
//	out TEXT        writes a line
//	part TEXT       writes without the end of a line
//	lines N         writes N numbered lines
//	env NAME        writes the variable
//	cat FILE        writes what is in the file
//	pwd             writes the folder
//	id              writes a text that no other process writes
//	results JSON    leaves results
//	exit N          ends with the code
//	signal N        ends by the signal
//	wait            waits until it is told to end, and then does
//	stay            is the same, but does not end
//	alloc MIB, fill MIB
//
// ctx is done when the process is told to end.
func Play(ctx context.Context, w World, steps []string) int {
	for len(steps) > 0 {
		step := steps[0]
		arg := ""
		if steps = steps[1:]; !slices.Contains([]string{"pwd", "id", "wait", "stay"}, step) && len(steps) > 0 {
			arg, steps = steps[0], steps[1:]
		}
		code, over, err := w.play(ctx, step, arg)
		if errors.Is(err, ErrSignal) {
			return 143
		}
		if err != nil {
			_, _ = fmt.Fprintln(w.Out, "probe:", err)
			return 1
		}
		if over {
			return code
		}
	}
	return 0
}

func (w World) play(ctx context.Context, step, arg string) (code int, over bool, err error) {
	n, _ := strconv.Atoi(arg)
	switch step {
	case "out", "part", "lines", "env", "id":
		w.write(step, arg, n)
	case "cat":
		var raw []byte
		raw, err = w.ReadFile(arg)
		_, _ = w.Out.Write(raw)
	case "pwd":
		var dir string
		dir, err = w.Getwd()
		_, _ = fmt.Fprintln(w.Out, dir)
	case "results":
		err = w.WriteFile(w.Getenv("KILN_RESULTS"), []byte(arg))
	case "exit":
		return n, true, nil
	case "signal":
		w.Kill(n)
		return 128 + n, true, nil
	case "wait":
		<-ctx.Done()
		err = ErrSignal
	case "stay":
		w.Stay()
	case "alloc":
		err = w.Alloc(n)
	case "fill":
		err = w.Fill(n)
	default:
		err = fmt.Errorf("there is no step %q", step)
	}
	return 0, false, err
}

func (w World) write(step, arg string, n int) {
	switch step {
	case "out":
		_, _ = fmt.Fprintln(w.Out, arg)
	case "part":
		_, _ = fmt.Fprint(w.Out, arg)
	case "env":
		_, _ = fmt.Fprintln(w.Out, w.Getenv(arg))
	case "id":
		_, _ = fmt.Fprintf(w.Out, "id %d.%d\n", os.Getpid(), time.Now().UnixNano())
	case "lines":
		for i := range n {
			_, _ = fmt.Fprintf(w.Out, "line %d\n", i)
		}
	}
}
