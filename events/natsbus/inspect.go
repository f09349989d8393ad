package natsbus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Inspection is what Inspect found, in the words of Report and DriftError.
type Inspection struct {
	Present     []string
	Missing     []string
	Differences []Difference
}

// Inspect compares the server with the topology as Provision does, and creates nothing.
// It needs no more than to read the configuration of streams and consumers. An error
// means that the server was not reached, has no JetStream or does not let us look.
func Inspect(ctx context.Context, js jetstream.JetStream, t Topology) (Inspection, error) {
	if err := t.validate(); err != nil {
		return Inspection{}, err
	}
	t = t.withDefaults()
	var found Inspection
	for _, want := range append(t.streams(), t.buckets()...) {
		stream, err := js.Stream(ctx, want.config.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			found.Missing = append(found.Missing, want.name)
		case err != nil:
			return found, fmt.Errorf("look at %s: %w", want.name, explain(err))
		default:
			found.Present = append(found.Present, want.name)
			found.Differences = append(found.Differences, streamDrift(want.name, want.config, stream.CachedInfo().Config)...)
		}
	}
	for _, want := range t.consumers() {
		object := "consumer " + want.stream + "/" + want.config.Name
		consumer, err := js.Consumer(ctx, want.stream, want.config.Name)
		switch {
		case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
			found.Missing = append(found.Missing, object)
		case err != nil:
			return found, fmt.Errorf("look at %s: %w", object, explain(err))
		default:
			found.Present = append(found.Present, object)
			found.Differences = append(found.Differences, consumerDrift(want.stream, want.config, consumer.CachedInfo().Config)...)
		}
	}
	return found, nil
}
