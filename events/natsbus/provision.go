package natsbus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Report lists what Provision did, as "stream BUILD". Of two processes that create
// the same object at the same moment both may say so.
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

// Provision creates what is missing and compares what exists, but changes nothing
// that exists: which side is right is for people to say. It is safe to run at any
// time, by several processes too. A difference is a *DriftError, with everything
// that is missing created all the same.
func Provision(ctx context.Context, js jetstream.JetStream, t Topology) (Report, error) {
	if err := t.validate(); err != nil {
		return Report{}, err
	}
	t = t.withDefaults()
	var report Report
	var drift []Difference
	streams := func(all []object) error {
		for _, want := range all {
			have, created, err := ensureStream(ctx, js, want.config)
			if err != nil {
				return err
			}
			report.note(created, want.name)
			drift = append(drift, streamDrift(want.name, want.config, have)...)
		}
		return nil
	}
	if err := streams(t.streams()); err != nil {
		return report, err
	}
	for _, want := range t.consumers() {
		have, created, err := ensureConsumer(ctx, js, want.stream, want.config)
		if err != nil {
			return report, err
		}
		report.note(created, "consumer "+want.stream+"/"+want.config.Name)
		drift = append(drift, consumerDrift(want.stream, want.config, have)...)
	}
	if err := streams(t.buckets()); err != nil {
		return report, err
	}
	if len(drift) > 0 {
		return report, &DriftError{Differences: drift}
	}
	return report, nil
}

// ensureStream returns the stream's configuration, created if it was not there.
func ensureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (have jetstream.StreamConfig, created bool, err error) {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, want)
		created = err == nil
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another process was faster
			stream, err = js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return have, false, fmt.Errorf("create stream %s: %w", want.Name, explain(err))
	}
	return stream.CachedInfo().Config, created, nil
}

func ensureConsumer(ctx context.Context, js jetstream.JetStream, stream string, want jetstream.ConsumerConfig) (have jetstream.ConsumerConfig, created bool, err error) {
	consumer, err := js.Consumer(ctx, stream, want.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = js.CreateConsumer(ctx, stream, want)
		created = err == nil
		if errors.Is(err, jetstream.ErrConsumerExists) {
			consumer, err = js.Consumer(ctx, stream, want.Name)
		}
	}
	if err != nil {
		return have, false, fmt.Errorf("create consumer %s: %w", want.Name, explain(err))
	}
	return consumer.CachedInfo().Config, created, nil
}

// JetStream's codes for a create that the server refuses.
const (
	codeNoPeers         jetstream.ErrorCode = 10005
	codeNoStorage       jetstream.ErrorCode = 10047
	codeSubjectsOverlap jetstream.ErrorCode = 10065
	codeNotClustered    jetstream.ErrorCode = 10074
)

// explain adds what to do to the server's refusal.
func explain(err error) error {
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("JetStream is off for this server or account; start the server with -js and allow it: %w", err)
	}
	refused, ok := errors.AsType[*jetstream.APIError](err)
	switch {
	case !ok:
		return err
	case refused.ErrorCode == codeSubjectsOverlap:
		return fmt.Errorf("another stream takes these subjects already; find it with `nats stream find --subject`, or choose a prefix: %w", err)
	case refused.ErrorCode == codeNoStorage:
		return fmt.Errorf("the server's JetStream storage is exhausted; raise max_file_store or the account's limit: %w", err)
	case refused.ErrorCode == codeNoPeers, refused.ErrorCode == codeNotClustered:
		return fmt.Errorf("there are fewer servers in the cluster than replicas asked for; lower the replicas or add servers: %w", err)
	default:
		return err
	}
}
