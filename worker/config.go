package worker

import (
	"cmp"
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
	// Intake is how many requests are taken in at the same time. Defaults to 4.
	Intake int
	// TotalLimit and ProjectLimit bound the builds that run at the same time, of all
	// workers together and of each project. Every worker should have the same. 0, the
	// default, is no bound.
	TotalLimit, ProjectLimit int
	// QueueLimit bounds the unfinished requests of a project; more are refused. 0, the
	// default, is no bound.
	QueueLimit int
	// Ageing is how long a class of a project's requests waits for a start until it goes
	// up by one: from bulk to auto, from auto to interactive. Defaults to 5 min.
	Ageing time.Duration
	// Classes are what builds get, by their limits as configured: the first one, and
	// after a build was out of memory the next. Nil: as configured, then twice the
	// memory. A single one: no second try.
	Classes []Class
	// Lease is how long a build stays claimed without renewal, and how long a
	// message stays ours without a sign of life; it must not be longer than the
	// consumer's AckWait. Renewed every third of it. Defaults to 30 s.
	Lease time.Duration
	// SoftStop is how long running builds may go on after Run's context ended.
	// Defaults to 30 s.
	SoftStop time.Duration
	// Reconcile is how often one of the workers looks for what was left undone, Grace how
	// old that must be, and Lookback how far back it looks when it begins. Default to
	// 30 s, 2 min and 24 h.
	Reconcile, Grace, Lookback time.Duration
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

// Class is an amount of resources, as factors of what is configured; 0 counts as 1.
type Class struct {
	Name              string
	Memory, CPU, Disk float64
}

// Deps are what a Worker works with. All but Cancels, History, Nuclio and Metrics are required.
type Deps struct {
	Queue Requests
	// Cancels is the queue of build.cancel; nil: they are left to other workers.
	Cancels   Queue
	Publisher Publisher
	// History lets this worker look after what others left undone; nil: it does not.
	History History
	Ledger  Ledger
	Backlog Backlog
	Logs    LogStore
	Builder *builder.Builder
	Log     zerolog.Logger
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
	if c.Intake == 0 {
		c.Intake = 4
	}
	if c.Classes == nil {
		c.Classes = []Class{{Name: "default"}, {Name: "large", Memory: 2}}
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
		{&c.Ageing, 5 * time.Minute},
		{&c.Reconcile, 30 * time.Second},
		{&c.Grace, 2 * time.Minute},
		{&c.Lookback, 24 * time.Hour},
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
	for name, n := range map[string]int{
		"intake": c.Intake, "total limit": c.TotalLimit, "project limit": c.ProjectLimit, "queue limit": c.QueueLimit,
	} {
		if n < 0 {
			faults = append(faults, fmt.Errorf("%s must not be negative: %d", name, n))
		}
	}
	for name, d := range map[string]time.Duration{
		"lease": c.Lease, "ageing": c.Ageing, "reconcile": c.Reconcile, "grace": c.Grace, "lookback": c.Lookback, "soft stop": c.SoftStop, "retry delay": c.RetryDelay, "retry max delay": c.RetryMaxDelay,
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
		"backlog":   d.Backlog == nil,
		"log store": d.Logs == nil, "builder": d.Builder == nil,
	} {
		if missing {
			faults = append(faults, fmt.Errorf("worker needs a %s", name))
		}
	}
	return errors.Join(faults...)
}

// scaled are the limits of a build in the given class.
func (c Config) scaled(l builder.Limits, class int) builder.Limits {
	if class >= len(c.Classes) {
		return l
	}
	k := c.Classes[class]
	l.Memory = int64(float64(l.Memory) * cmp.Or(k.Memory, 1))
	l.Disk = int64(float64(l.Disk) * cmp.Or(k.Disk, 1))
	l.CPU *= cmp.Or(k.CPU, 1)
	return l
}

// larger reports whether there is a class after the given one that has more memory.
func (c Config) larger(l builder.Limits, class int) bool {
	return class+1 < len(c.Classes) && c.scaled(l, class+1).Memory > c.scaled(l, class).Memory
}
