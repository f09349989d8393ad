package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
)

// Topology is what has to exist on the server. The zero value is usable; every
// field says its default.
type Topology struct {
	// Prefix separates several Kilns on one server: "acme" gives subjects
	// "acme.build.requested" and names "ACME_BUILD". Defaults to none.
	Prefix string
	// Replicas of streams and ledger: 1, 3 or 5. Defaults to 1.
	Replicas int
	// MaxAge keeps events and ledger records. Defaults to 30 days.
	MaxAge time.Duration
	// LogMaxAge keeps build logs. Defaults to 7 days.
	LogMaxAge time.Duration
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

func (t Topology) withDefaults() Topology {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&t.MaxAge, 30*24*time.Hour)
	set(&t.LogMaxAge, 7*24*time.Hour)
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
	return strings.ToUpper(strings.ReplaceAll(strings.Trim(t.Prefix, "."), ".", "_")) + "_" + base
}

// Names of what Provision creates.
func (t Topology) buildStream() string { return t.name("BUILD") }
func (t Topology) logStream() string   { return t.name("BUILD_LOG") }
func (t Topology) ledger() string      { return t.name("KILN_LEDGER") }

// consumerName is the durable consumer that all workers share.
const consumerName = "build-workers"

func (t Topology) buildConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: t.buildStream(), Description: "Kiln: requests for images and what became of them",
		Subjects: []string{t.Subjects().AllBuilds()}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
		MaxAge: t.MaxAge, Duplicates: t.DuplicateWindow, Replicas: t.Replicas,
	}
}

func (t Topology) logConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: t.logStream(), Description: "Kiln: logs of builds",
		Subjects: []string{t.Subjects().AllLogs()}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage,
		MaxAge: t.LogMaxAge, Replicas: t.Replicas, Compression: jetstream.S2Compression,
		Duplicates: min(2*time.Minute, t.LogMaxAge),
	}
}

// consumerConfig leaves BackOff empty, since it would replace AckWait, and MaxDeliver
// without limit, since the worker decides when a request has failed.
func (t Topology) consumerConfig() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: consumerName, Name: consumerName, Description: "Kiln: every worker fetches from here",
		FilterSubject: t.Subjects().Of(events.TypeBuildRequested), AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckWait: t.AckWait, MaxDeliver: -1, MaxAckPending: t.MaxAckPending,
		Replicas: t.Replicas,
	}
}

func (t Topology) ledgerConfig() jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{
		Bucket: t.ledger(), Description: "Kiln: who builds what, and what was decided",
		History: 1, TTL: t.MaxAge, Storage: jetstream.FileStorage, Replicas: t.Replicas,
	}
}

// Report lists what Provision did, as "stream BUILD".
type Report struct {
	Created   []string `json:"created"`
	Unchanged []string `json:"unchanged"`
}

func (r *Report) note(created bool, what string) {
	if created {
		r.Created = append(r.Created, what)
	} else {
		r.Unchanged = append(r.Unchanged, what)
	}
}

// DriftError says where the server differs from the topology. Provision changes
// nothing that exists: which side is right is for people to say.
type DriftError struct {
	Differences []string
}

// Error lists the differences, one a line.
func (e *DriftError) Error() string {
	return "the server differs from the configuration:\n  " + strings.Join(e.Differences, "\n  ") +
		"\nAdapt the configuration, or change the server with `nats stream edit` and `nats consumer edit`, and run provision again."
}

// Provision creates what is missing and compares what exists. It is safe to run at
// any time, by several processes too. A difference is a *DriftError.
func Provision(ctx context.Context, js jetstream.JetStream, t Topology) (Report, error) {
	t = t.withDefaults()
	var report Report
	var drift []string
	for _, want := range []jetstream.StreamConfig{t.buildConfig(), t.logConfig()} {
		stream, created, err := ensureStream(ctx, js, want)
		if err != nil {
			return report, err
		}
		report.note(created, "stream "+want.Name)
		drift = append(drift, streamDrift(want, stream.CachedInfo().Config)...)
	}
	created, found, err := t.ensureConsumer(ctx, js)
	if err != nil {
		return report, err
	}
	report.note(created, "consumer "+t.buildStream()+"/"+consumerName)
	drift = append(drift, found...)
	created, found, err = t.ensureLedger(ctx, js)
	if err != nil {
		return report, err
	}
	report.note(created, "bucket "+t.ledger())
	if drift = append(drift, found...); len(drift) > 0 {
		return report, &DriftError{Differences: drift}
	}
	return report, nil
}

// ensureStream returns the stream, created if it was not there. Another process may
// create it at the same moment.
func ensureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (jetstream.Stream, bool, error) {
	stream, err := js.Stream(ctx, want.Name)
	if err == nil {
		return stream, false, nil
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, false, fmt.Errorf("look for stream %s: %w", want.Name, err)
	}
	stream, err = js.CreateStream(ctx, want)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		stream, err = js.Stream(ctx, want.Name)
	}
	if err != nil {
		return nil, false, fmt.Errorf("create stream %s: %w", want.Name, err)
	}
	return stream, true, nil
}

func (t Topology) ensureConsumer(ctx context.Context, js jetstream.JetStream) (created bool, drift []string, err error) {
	want := t.consumerConfig()
	consumer, err := js.Consumer(ctx, t.buildStream(), consumerName)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		created = true
		if consumer, err = js.CreateConsumer(ctx, t.buildStream(), want); errors.Is(err, jetstream.ErrConsumerExists) {
			consumer, err = js.Consumer(ctx, t.buildStream(), consumerName)
		}
	}
	if err != nil {
		return false, nil, fmt.Errorf("create consumer %s: %w", consumerName, err)
	}
	have := consumer.CachedInfo().Config
	d := differ{what: "consumer " + consumerName}
	d.compare("filter", want.FilterSubject, have.FilterSubject)
	d.compare("ack policy", want.AckPolicy, have.AckPolicy)
	d.compare("ack wait", want.AckWait, have.AckWait)
	d.compare("max deliver", want.MaxDeliver, have.MaxDeliver)
	d.compare("max ack pending", want.MaxAckPending, have.MaxAckPending)
	d.compare("backoff steps", 0, len(have.BackOff))
	return created, d.found, nil
}

func (t Topology) ensureLedger(ctx context.Context, js jetstream.JetStream) (created bool, drift []string, err error) {
	want := t.ledgerConfig()
	kv, err := js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		created = true
		if kv, err = js.CreateKeyValue(ctx, want); errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, want.Bucket)
		}
	}
	if err != nil {
		return false, nil, fmt.Errorf("create bucket %s: %w", want.Bucket, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return false, nil, fmt.Errorf("read bucket %s: %w", want.Bucket, err)
	}
	have := status.Config()
	d := differ{what: "bucket " + want.Bucket}
	d.compare("history", want.History, have.History)
	d.compare("max age", want.TTL, have.TTL)
	d.compare("replicas", want.Replicas, have.Replicas)
	return created, d.found, nil
}

func streamDrift(want, have jetstream.StreamConfig) []string {
	d := differ{what: "stream " + want.Name}
	if !slices.Equal(want.Subjects, have.Subjects) {
		d.compare("subjects", strings.Join(want.Subjects, ","), strings.Join(have.Subjects, ","))
	}
	d.compare("retention", want.Retention, have.Retention)
	d.compare("storage", want.Storage, have.Storage)
	d.compare("max age", want.MaxAge, have.MaxAge)
	d.compare("duplicate window", want.Duplicates, have.Duplicates)
	d.compare("replicas", want.Replicas, have.Replicas)
	return d.found
}

// differ collects differences of one object.
type differ struct {
	what  string
	found []string
}

func (d *differ) compare(field string, want, have any) {
	if want != have {
		d.found = append(d.found, fmt.Sprintf("%s: %s is %v, the configuration says %v", d.what, field, have, want))
	}
}
