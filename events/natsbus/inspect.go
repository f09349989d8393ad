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
// It needs no more than to read the configuration of streams and consumer. An error
// means that the server was not reached, has no JetStream or does not let us look.
func Inspect(ctx context.Context, js jetstream.JetStream, t Topology) (Inspection, error) {
	if err := t.validate(); err != nil {
		return Inspection{}, err
	}
	t = t.withDefaults()
	var found Inspection
	for _, want := range []struct {
		object string
		config jetstream.StreamConfig
	}{
		{"stream " + t.buildStream(), t.buildConfig()},
		{"stream " + t.logStream(), t.logConfig()},
		{"bucket " + t.ledger(), t.ledgerConfig()},
		{"bucket " + t.contexts(), t.contextConfig()},
	} {
		stream, err := js.Stream(ctx, want.config.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			found.Missing = append(found.Missing, want.object)
		case err != nil:
			return found, fmt.Errorf("look at %s: %w", want.object, explain(err))
		default:
			found.Present = append(found.Present, want.object)
			found.Differences = append(found.Differences, streamDrift(want.object, want.config, stream.CachedInfo().Config)...)
		}
	}
	object := "consumer " + t.buildStream() + "/" + consumerName
	consumer, err := js.Consumer(ctx, t.buildStream(), consumerName)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		found.Missing = append(found.Missing, object)
	case err != nil:
		return found, fmt.Errorf("look at %s: %w", object, explain(err))
	default:
		found.Present = append(found.Present, object)
		found.Differences = append(found.Differences, consumerDrift(t.buildStream(), t.consumerConfig(), consumer.CachedInfo().Config)...)
	}
	return found, nil
}
