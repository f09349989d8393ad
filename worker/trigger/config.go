package trigger

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/run"
	"kiln/worker"
)

// Config of a Trigger. The zero value is usable; every field says its default.
type Config struct {
	// Name tells triggers apart in events and logs. Defaults to "trigger".
	Name string
	// Place names where the runner's processes are: triggers of one place can attach to
	// each other's runs. Defaults to Name, so that nobody else can.
	Place string
	// Scope separates Kilns that share a runner's machine or cluster: it is part of what
	// the runner knows a run by.
	Scope string
	// Slots is how many runs this trigger has in hand at the same time. Defaults to 4.
	Slots int
	// Intake is how many requests, and how many results of builds, are handled at the
	// same time. Defaults to 4.
	Intake int
	// Lease is how long a run stays claimed without renewal; renewed every third of it.
	// It must not be longer than the consumers' AckWait. Defaults to 30 s.
	Lease time.Duration
	// Lost is how long a run stays claimed whose trigger gave no sign of life, while
	// nobody of its place does. Then it has failed. Defaults to 10 min.
	Lost time.Duration
	// SoftStop is how long runs may go on in hand after Trigger.Run's context ended; then
	// they are left to another trigger of the place. Defaults to 30 s.
	SoftStop time.Duration
	// Timeout bounds runs that name none, from the start of the process. Defaults to 24 h.
	Timeout time.Duration
	// Reconcile is how often what was left undone is looked for, Grace how old that must
	// be. Default to 30 s and 2 min.
	Reconcile, Grace time.Duration
	// MaxAttempts bounds how often a run is tried when the fault is ours. Defaults to 5.
	MaxAttempts int
	// RetryDelay is the pause after the first such try; it doubles with each, up to
	// RetryMaxDelay, with jitter. Default to 1 s and 1 min.
	RetryDelay, RetryMaxDelay time.Duration
	// LogSubject names the log of a run by its events.RunKey. Defaults to "run.log.<key>".
	LogSubject func(key string) string
	// Function holds the rules and defaults for function objects.
	Function function.Config
}

// Deps are what a Trigger works with. All but History, PinSource, Secrets, Hidden and Metrics are
// required.
type Deps struct {
	// Requests is the queue of run.requested, Cancels of run.cancel, Builds of
	// build.completed, build.failed and build.canceled.
	Requests        worker.Requests
	Cancels, Builds worker.Queue
	Publisher       worker.Publisher
	// History is that of builds; nil: results that a queue lost are not found again.
	History worker.History
	Runs    Runs
	Logs    Logs
	Pin     Pin
	Resolve Resolve
	Runner  run.Runner
	// PinSource is for functions that load their source when they run; nil: those are
	// left to the runner as they are.
	PinSource PinSource
	// Secrets are those of projects; nil: there are none.
	Secrets builder.SecretStore
	// Hidden is kept out of logs beside the secrets of a run.
	Hidden []*builder.Redactor
	Log    zerolog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "trigger")
	c.Place = cmp.Or(c.Place, c.Name)
	c.Slots, c.Intake, c.MaxAttempts = cmp.Or(c.Slots, 4), cmp.Or(c.Intake, 4), cmp.Or(c.MaxAttempts, 5)
	if c.LogSubject == nil {
		c.LogSubject = func(key string) string { return "run.log." + key }
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Lease, 30 * time.Second},
		{&c.Lost, 10 * time.Minute},
		{&c.SoftStop, 30 * time.Second},
		{&c.Timeout, 24 * time.Hour},
		{&c.Reconcile, 30 * time.Second},
		{&c.Grace, 2 * time.Minute},
		{&c.RetryDelay, time.Second},
		{&c.RetryMaxDelay, time.Minute},
	} {
		*d.field = cmp.Or(*d.field, d.value)
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	for name, n := range map[string]int{"slots": c.Slots, "intake": c.Intake, "max attempts": c.MaxAttempts} {
		if n < 0 {
			faults = append(faults, fmt.Errorf("%s must be at least 1, not %d", name, n))
		}
	}
	for name, d := range map[string]time.Duration{
		"lease": c.Lease, "lost": c.Lost, "soft stop": c.SoftStop, "timeout": c.Timeout, "reconcile": c.Reconcile, "grace": c.Grace,
		"retry delay": c.RetryDelay, "retry max delay": c.RetryMaxDelay,
	} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("%s must not be negative: %s", name, d))
		}
	}
	return errors.Join(faults...)
}

func (d Deps) validate() error {
	var faults []error
	for name, missing := range map[string]bool{
		"queue of requests": d.Requests == nil, "queue of cancels": d.Cancels == nil, "queue of results": d.Builds == nil,
		"publisher": d.Publisher == nil, "store of runs": d.Runs == nil, "log store": d.Logs == nil, "registry": d.Pin == nil,
		"resolver": d.Resolve == nil, "runner": d.Runner == nil,
	} {
		if missing {
			faults = append(faults, fmt.Errorf("trigger needs a %s", name))
		}
	}
	return errors.Join(faults...)
}
