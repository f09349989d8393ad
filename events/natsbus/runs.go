package natsbus

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Names of what runs need.
func (t Topology) runStream() string    { return t.name("RUN") }
func (t Topology) runLogStream() string { return t.name("RUN_LOG") }
func (t Topology) runs() string         { return t.name("KILN_RUNS") }

// The durable consumers that all triggers share: of requested runs, of cancels, and of
// how builds ended.
const (
	runConsumer       = "run-triggers"
	runCancelConsumer = "run-cancels"
	runBuildConsumer  = "run-builds"
)

func (t Topology) runConfig() jetstream.StreamConfig {
	cfg := t.buildConfig()
	cfg.Name, cfg.Description, cfg.Subjects = t.runStream(), "Kiln: requested runs and what became of them", []string{t.Subjects().AllRuns()}
	return cfg
}

func (t Topology) runLogConfig() jetstream.StreamConfig {
	cfg := t.logConfig()
	cfg.Name, cfg.Description, cfg.Subjects = t.runLogStream(), "Kiln: output of runs", []string{t.Subjects().AllRunLogs()}
	return cfg
}

// runsConfig is the backlog's: keys of open runs are deleted when these end.
func (t Topology) runsConfig() jetstream.StreamConfig {
	return forgetting(t.bucketConfig(t.runs(), "Kiln: what is known of runs"))
}

// runConsumers are those of the triggers. The one of builds begins with what is new:
// nobody waits for a result that was there before there were triggers.
func (t Topology) runConsumers() []consumer {
	builds := t.consumerConfig(runBuildConsumer, "", "Kiln: every trigger fetches from here how builds ended")
	builds.FilterSubject, builds.DeliverPolicy = "", jetstream.DeliverNewPolicy
	for _, typ := range []events.Type{events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled} {
		builds.FilterSubjects = append(builds.FilterSubjects, t.Subjects().Of(typ))
	}
	return []consumer{
		{t.runStream(), t.consumerConfig(runConsumer, events.TypeRunRequested, "Kiln: every trigger fetches requested runs from here")},
		{t.runStream(), t.consumerConfig(runCancelConsumer, events.TypeRunCancel, "Kiln: every trigger fetches cancels of runs from here")},
		{t.buildStream(), builds},
	}
}

// RunRequests binds to the triggers' consumer of run.requested, as Queue does.
func (b *Bus) RunRequests(ctx context.Context) (*Queue, error) {
	return b.queue(ctx, b.topology.runStream(), runConsumer)
}

// RunCancels binds to the triggers' consumer of run.cancel, as Queue does.
func (b *Bus) RunCancels(ctx context.Context) (*Queue, error) {
	return b.queue(ctx, b.topology.runStream(), runCancelConsumer)
}

// RunBuilds binds to the triggers' consumer of build.completed, build.failed and
// build.canceled, as Queue does.
func (b *Bus) RunBuilds(ctx context.Context) (*Queue, error) {
	return b.queue(ctx, b.topology.buildStream(), runBuildConsumer)
}

// Runs is the compare-and-set store of runs, a Ledger in which deleted keys leave
// nothing behind. Safe for concurrent use.
type Runs struct{ bucket }

// Runs binds to the bucket. It fails if that was not provisioned.
func (b *Bus) Runs(ctx context.Context) (*Runs, error) {
	bound, err := b.bucket(ctx, b.topology.runs(), markerTTL)
	if err != nil {
		return nil, err
	}
	return &Runs{bound}, nil
}

// Watch is Ledger.Watch.
func (r *Runs) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(Change) bool) error {
	return r.watch(ctx, pattern, updatesOnly, visit)
}

// RunLogs returns the store of the output of runs, by their events.RunKey.
func (b *Bus) RunLogs() *LogStore {
	return &LogStore{js: b.js, stream: b.topology.runLogStream(), subject: b.Subjects().RunLog}
}
