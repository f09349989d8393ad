package natsbus

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Topology is what has to exist on the server. The zero value is usable; every
// field says its default.
type Topology struct {
	// Prefix separates several Kilns on one server: "acme" gives subjects
	// "acme.build.requested" and names "ACME_BUILD". Letters, digits, "-" and "_",
	// in parts that dots separate. Names are in upper case with "_" for a dot, so
	// that "a.b" and "A_B" cannot share a server; Provision says so. Defaults to none.
	Prefix string
	// Replicas of streams and buckets: 1, 3 or 5. Defaults to 1.
	Replicas int
	// MaxAge keeps events and the records of ledger, backlog and runs. Defaults to 30 days.
	MaxAge time.Duration
	// LogMaxAge keeps logs of builds and runs. Defaults to 7 days.
	LogMaxAge time.Duration
	// ContextMaxAge keeps uploaded build contexts. Defaults to 7 days.
	ContextMaxAge time.Duration
	// AckWait is how long a worker may be silent before its message goes to another.
	// Defaults to 30 s.
	AckWait time.Duration
	// MaxAckPending bounds the requests that all workers together handle at a time.
	// Defaults to 256.
	MaxAckPending int
	// DuplicateWindow is how long the stream recognises a Nats-Msg-Id. Defaults to
	// 5 min.
	DuplicateWindow time.Duration
}

// validPrefix keeps wildcards, spaces and what a stream's name cannot have out.
var validPrefix = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// maxPrefix keeps derived names well below the server's 255 characters.
const maxPrefix = 100

// validate returns all faults of a topology with defaults.
func (t Topology) validate() error {
	t = t.withDefaults()
	var errs []error
	if t.Prefix != "" && (len(t.Prefix) > maxPrefix || !validPrefix.MatchString(t.Prefix)) {
		errs = append(errs, fmt.Errorf("prefix %.120q must be at most %d letters, digits, - and _, in parts separated by dots", t.Prefix, maxPrefix))
	}
	if t.Replicas != 1 && t.Replicas != 3 && t.Replicas != 5 {
		errs = append(errs, fmt.Errorf("replicas must be 1, 3 or 5, not %d", t.Replicas))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"max age", t.MaxAge, time.Minute},
		{"log max age", t.LogMaxAge, time.Minute},
		{"context max age", t.ContextMaxAge, time.Minute},
		{"ack wait", t.AckWait, 100 * time.Millisecond},
		{"duplicate window", t.DuplicateWindow, 100 * time.Millisecond},
	} {
		if d.value < d.least {
			errs = append(errs, fmt.Errorf("%s must be at least %s, not %s", d.name, d.least, d.value))
		}
	}
	if t.DuplicateWindow > t.MaxAge {
		errs = append(errs, fmt.Errorf("duplicate window %s must not be longer than max age %s", t.DuplicateWindow, t.MaxAge))
	}
	if t.MaxAckPending < 1 {
		errs = append(errs, fmt.Errorf("max ack pending must be positive, not %d", t.MaxAckPending))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("topology: %w", err)
	}
	return nil
}

func (t Topology) withDefaults() Topology {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&t.MaxAge, 30*24*time.Hour)
	set(&t.LogMaxAge, 7*24*time.Hour)
	set(&t.ContextMaxAge, 7*24*time.Hour)
	set(&t.AckWait, 30*time.Second)
	set(&t.DuplicateWindow, 5*time.Minute)
	if t.Replicas == 0 {
		t.Replicas = 1
	}
	if t.MaxAckPending == 0 {
		t.MaxAckPending = 256
	}
	return t
}

// Subjects returns the subjects of this topology.
func (t Topology) Subjects() events.Subjects { return events.Subjects{Prefix: t.Prefix} }

// name puts the prefix before the name of a stream or bucket.
func (t Topology) name(base string) string {
	if t.Prefix == "" {
		return base
	}
	return strings.ToUpper(strings.ReplaceAll(t.Prefix, ".", "_")) + "_" + base
}

// Names of what Provision creates.
func (t Topology) buildStream() string { return t.name("BUILD") }
func (t Topology) logStream() string   { return t.name("BUILD_LOG") }
func (t Topology) ledger() string      { return t.name("KILN_LEDGER") }
func (t Topology) backlog() string     { return t.name("KILN_BACKLOG") }
func (t Topology) contexts() string    { return t.name("KILN_CONTEXT") }

// The durable consumers that all workers share. Cancels have one of their own, so that
// no backlog of requests delays them.
const (
	requestConsumer = "build-workers"
	cancelConsumer  = "build-cancels"
)

// consumer is a consumer and the stream that it is of.
type consumer struct {
	stream string
	config jetstream.ConsumerConfig
}

// unlimited is what the server makes of a limit of 0.
const unlimited = -1

// buildConfig leaves the size of messages to the server. History may be deleted by
// hand (DenyDelete and DenyPurge are off): a secret that somebody published by
// mistake has to be removable, and neither setting could be taken back.
func (t Topology) buildConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: t.buildStream(), Description: "Kiln: requests for images and what became of them",
		Subjects: []string{t.Subjects().AllBuilds()}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
		MaxAge: t.MaxAge, Duplicates: t.DuplicateWindow, Replicas: t.Replicas,
		MaxMsgs: unlimited, MaxBytes: unlimited, MaxMsgsPerSubject: unlimited,
	}
}

// logConfig leaves the size of the stream to the operator: losing old logs harms no
// build.
func (t Topology) logConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: t.logStream(), Description: "Kiln: logs of builds",
		Subjects: []string{t.Subjects().AllLogs()}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
		MaxAge: t.LogMaxAge, Replicas: t.Replicas, Compression: jetstream.S2Compression,
		Duplicates: min(2*time.Minute, t.LogMaxAge), MaxMsgs: unlimited, MaxMsgsPerSubject: unlimited,
	}
}

// consumers are those of the workers, in the order in which they are reported.
func (t Topology) consumers() []consumer {
	return append([]consumer{
		{t.buildStream(), t.consumerConfig(requestConsumer, events.TypeBuildRequested, "Kiln: every worker fetches requests from here")},
		{t.buildStream(), t.consumerConfig(cancelConsumer, events.TypeBuildCancel, "Kiln: every worker fetches cancels from here")},
	}, t.runConsumers()...)
}

// consumerConfig leaves BackOff empty, since it would replace AckWait, and MaxDeliver
// without limit, since the worker decides when a request has failed.
func (t Topology) consumerConfig(name string, of events.Type, description string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: name, Name: name, Description: description,
		FilterSubject: t.Subjects().Of(of), AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckWait: t.AckWait, MaxDeliver: -1, MaxAckPending: t.MaxAckPending,
		Replicas: t.Replicas,
	}
}

// ledgerConfig is the stream behind the key-value bucket, as
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md lays
// it down, with one exception: no direct reads. With replicas those may be answered
// by a follower that is behind, and a worker has to read what it wrote.
func (t Topology) ledgerConfig() jetstream.StreamConfig {
	return t.bucketConfig(t.ledger(), "Kiln: who builds what, and what was decided")
}

// markerTTL is how long the backlog remembers that a key was deleted. A watch that was
// cut off for longer reads the bucket again.
const markerTTL = 10 * time.Minute

// backlogConfig is the ledger's, but deleted keys leave nothing behind, and one that is
// too old is as deleted as any other.
func (t Topology) backlogConfig() jetstream.StreamConfig {
	return forgetting(t.bucketConfig(t.backlog(), "Kiln: accepted requests that are not finished"))
}

func forgetting(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	cfg.AllowMsgTTL, cfg.SubjectDeleteMarkerTTL = true, markerTTL
	return cfg
}

func (t Topology) bucketConfig(bucket, description string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: bucketStream(bucket), Description: description,
		Subjects: []string{"$KV." + bucket + ".>"}, Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy,
		MaxMsgsPerSubject: 1, MaxAge: t.MaxAge, Duplicates: min(2*time.Minute, t.MaxAge), Replicas: t.Replicas,
		MaxMsgs: unlimited, MaxBytes: unlimited, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: false,
	}
}

// contextConfig is the stream behind the object store, as
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-20.md lays
// it down, without direct reads for the ledger's reason: a worker has to find what was
// uploaded a moment ago. Its size is the operator's: an upload that does not fit fails.
func (t Topology) contextConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: objectStream(t.contexts()), Description: "Kiln: uploaded build contexts, by digest",
		Subjects: []string{"$O." + t.contexts() + ".C.>", "$O." + t.contexts() + ".M.>"}, Storage: jetstream.FileStorage,
		Retention: jetstream.LimitsPolicy, MaxAge: t.ContextMaxAge, Duplicates: min(2*time.Minute, t.ContextMaxAge), Replicas: t.Replicas,
		MaxMsgs: unlimited, MaxMsgsPerSubject: unlimited, Discard: jetstream.DiscardNew, AllowRollup: true, AllowDirect: false,
	}
}

// object is a stream that Provision creates, by the name in its report.
type object struct {
	name   string
	config jetstream.StreamConfig
}

func (t Topology) streams() []object {
	return []object{
		{"stream " + t.buildStream(), t.buildConfig()},
		{"stream " + t.logStream(), t.logConfig()},
		{"stream " + t.runStream(), t.runConfig()},
		{"stream " + t.runLogStream(), t.runLogConfig()},
	}
}

func (t Topology) buckets() []object {
	return []object{
		{"bucket " + t.ledger(), t.ledgerConfig()},
		{"bucket " + t.backlog(), t.backlogConfig()},
		{"bucket " + t.contexts(), t.contextConfig()},
		{"bucket " + t.runs(), t.runsConfig()},
	}
}

// bucketStream is the name of the stream behind a bucket.
func bucketStream(bucket string) string { return "KV_" + bucket }

// objectStream is the name of the stream behind an object store.
func objectStream(store string) string { return "OBJ_" + store }
