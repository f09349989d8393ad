package trigger

import (
	"context"
	"io"

	"kiln/builder/run"
	"kiln/events"
	"kiln/worker"
	"kiln/worker/backlog"
)

// Runs keeps what is known of runs.
type Runs interface {
	worker.Store
	// Delete removes the key if its revision is still the given one, else
	// worker.ErrConflict.
	Delete(ctx context.Context, key string, revision uint64) error
	// Watch calls visit for every key that matches pattern ("open.*"), unless updatesOnly
	// leaves out what is stored, then with Synced, then for every change, in order, until
	// ctx ends (then with ctx's error) or visit returns false. It survives reconnects.
	Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(backlog.Change) bool) error
}

// Logs keeps the output of runs, by events.RunKey and attempt.
type Logs interface {
	// Resume returns a writer that goes on with the log of an attempt.
	Resume(key string, attempt int) Log
	// Stored is how many bytes that log has.
	Stored(ctx context.Context, key string, attempt int) (int64, error)
}

// Log is the log of an attempt. Writes are whole lines.
type Log interface {
	io.Writer
	// Close stores what is left and marks the end of the attempt's log.
	Close() error
	// Leave is Close without the mark: another writer goes on.
	Leave() error
}

// Job is what a run is planned of.
type Job struct {
	// RunID is the run's events.RunKey, in the scope of Config.Scope: 64 hex digits.
	RunID   string
	Attempt int
	// Request is the run as it was requested.
	Request events.RunRequest
	// Image is "repository@sha256:…".
	Image string
	// Secrets are the project's, by name.
	Secrets map[string]string
}

// Resolve makes a plan of a job. It is pure, and called before the image is known too, to
// refuse what cannot be run before anything is built. Errors are of *builder.Error.
type Resolve func(Job) (run.Plan, error)

// Pin returns "repository@sha256:…" for an image as somebody named it, with the named
// registry credentials before the configured ones. Errors are of *builder.Error.
type Pin func(ctx context.Context, image, registrySecret string) (string, error)

// PinSource returns the version that code at url has now, as builder.Sources.Pin does.
type PinSource func(ctx context.Context, url string, env map[string]string) (version string, err error)
