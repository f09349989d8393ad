// Command react does something for every image that Kiln makes, with nothing but a NATS
// client: a trigger of one's own. Here it prints a line.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// image is what is read of a build.completed.
type image struct {
	RequestID string `json:"request_id"`
	ImageRef  string `json:"image_ref"`
	Outcome   string `json:"outcome"`
}

// react calls action for every image from the first call on, also after restarts and for
// images that came meanwhile. An image may come again when this process died while it
// worked on it: name is the same then, and action has to find what it began by it.
func react(ctx context.Context, js jetstream.JetStream, action func(name string, i image) error) error {
	consumer, err := js.CreateOrUpdateConsumer(ctx, "BUILD", jetstream.ConsumerConfig{
		Durable: "react", FilterSubject: "build.completed", AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		return err
	}
	done, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "REACT_DONE", TTL: 30 * 24 * time.Hour})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1)) // the others are for other processes
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		var event struct{ Data image }
		if err := json.Unmarshal(msg.Data(), &event); err != nil {
			_ = msg.Term() // it will not get better
			continue
		}
		name := fmt.Sprintf("%x", sha256.Sum256([]byte(event.Data.RequestID)))
		_, err = done.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			if err = action(name, event.Data); err == nil {
				_, err = done.Create(ctx, name, nil)
			}
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			_ = msg.NakWithDelay(5 * time.Second)
			continue
		}
		_ = msg.DoubleAck(ctx)
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return react(ctx, js, func(name string, i image) error {
		_, err := fmt.Printf("%s %s %s\n", name[:12], i.Outcome, i.ImageRef) //nolint:forbidigo // what this program does
		return err
	})
}
