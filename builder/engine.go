package builder

import (
	"context"
	"errors"
	"io"
)

// Engine executes plans. Implementations are safe for concurrent use and pass
// the suite in builder/enginetest.
type Engine interface {
	// Run executes the plan and blocks until the build ends. The image is then
	// pushed to plan.Destination and Result.Digest is its manifest digest.
	//
	// Log lines, each ended by a newline, are written to logs by one goroutine at a
	// time and never after Run returned. A failing writer does not fail the build.
	//
	// A second Run with the same BuildID and Attempt attaches to the running
	// execution or replaces its remains; it never runs the same attempt twice at
	// the same time. When ctx is canceled with cause ErrShutdown the engine stops
	// waiting (a local container is stopped, a Job goes on) and returns an error of
	// KindInterrupted. Any other cancel stops the execution and cleans up, and
	// returns an error of KindTimeout for a deadline, else KindCanceled. With cause
	// ErrLeaseLost a Job goes on too, since it is its new owner's.
	//
	// Every error is an *Error; its Kind says whose fault it is.
	Run(ctx context.Context, plan Plan, logs io.Writer) (Result, error)
	// Name is the wire name of the engine: "sandbox", "kube", "fake".
	Name() string
}

// Causes of a canceled context.
var (
	// ErrShutdown means that this process is stopping; the build is not at fault.
	ErrShutdown = errors.New("worker is shutting down")
	// ErrLeaseLost means that another worker owns the build now.
	ErrLeaseLost = errors.New("lease lost")
)
