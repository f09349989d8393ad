package worker

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/function"
)

// Config of a Worker. The zero value is usable; every field says its default.
type Config struct {
	// Name tells workers apart in events, logs and leases. It must differ from the
	// name of every other running worker. Defaults to "worker".
	Name string
	// Slots is how many builds run at the same time. Defaults to 1.
	Slots int
	// Lease is how long a build stays claimed without renewal, and how long a
	// message stays ours without a sign of life; it must not be longer than the
	// consumer's AckWait. Renewed every third of it. Defaults to 30 s.
	Lease time.Duration
	// SoftStop is how long running builds may go on after Run's context ended.
	// Defaults to 30 s.
	SoftStop time.Duration
	// MaxAttempts bounds how often a request is tried when the fault is ours.
	// Defaults to 10.
	MaxAttempts int
	// RetryDelay is the pause after the first such try; it doubles with each, up to
	// RetryMaxDelay, with jitter. Default to 1 s and 1 min.
	RetryDelay, RetryMaxDelay time.Duration
	// LogSubject names the log of a build in build.started. Defaults to
	// "build.log.<build_id>".
	LogSubject func(buildID string) string
	// Function holds the rules and defaults for function objects.
	Function function.Config
}

// Deps are what a Worker works with. All but Nuclio and Metrics are required.
type Deps struct {
	Queue     Queue
	Publisher Publisher
	Ledger    Ledger
	Logs      LogStore
	Builder   *builder.Builder
	Log       zerolog.Logger
	// Nuclio may be nil: functions that Nuclio builds are then left to whoever deploys them.
	Nuclio Nuclio
	// Metrics may be nil.
	Metrics *Metrics
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = "worker"
	}
	if c.Slots == 0 {
		c.Slots = 1
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 10
	}
	if c.LogSubject == nil {
		c.LogSubject = func(id string) string { return "build.log." + id }
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Lease, 30 * time.Second},
		{&c.SoftStop, 30 * time.Second},
		{&c.RetryDelay, time.Second},
		{&c.RetryMaxDelay, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c
}

func (c Config) validate() error {
	var faults []error
	if c.Slots < 0 {
		faults = append(faults, fmt.Errorf("slots must be at least 1, not %d", c.Slots))
	}
	if c.MaxAttempts < 0 {
		faults = append(faults, fmt.Errorf("max attempts must be at least 1, not %d", c.MaxAttempts))
	}
	for name, d := range map[string]time.Duration{
		"lease": c.Lease, "soft stop": c.SoftStop, "retry delay": c.RetryDelay, "retry max delay": c.RetryMaxDelay,
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
		"queue": d.Queue == nil, "publisher": d.Publisher == nil, "ledger": d.Ledger == nil,
		"log store": d.Logs == nil, "builder": d.Builder == nil,
	} {
		if missing {
			faults = append(faults, fmt.Errorf("worker needs a %s", name))
		}
	}
	return errors.Join(faults...)
}
