package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestEveryImageIsReactedToAndDoneOnce(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "BUILD", Subjects: []string{"build.*"}}); err != nil {
		t.Fatal(err)
	}
	// Before the first call nothing is meant.
	publish := func(data string) {
		t.Helper()
		if _, err := js.Publish(t.Context(), "build.completed", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	publish(`{"data":{"request_id":"old"}}`)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	seen := make(chan image, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- react(ctx, js, func(name string, i image) error {
			if len(name) != 64 {
				return errors.New("no name")
			}
			seen <- i
			return nil
		})
	}()
	for {
		if _, err := js.KeyValue(t.Context(), "REACT_DONE"); err == nil {
			break
		}
	}
	publish(`not JSON`)
	publish(`{"data":{"request_id":"a","image_ref":"r@d","outcome":"built"}}`)
	publish(`{"data":{"request_id":"a","image_ref":"r@d","outcome":"built"}}`)
	publish(`{"data":{"request_id":"b"}}`)
	if first, second := <-seen, <-seen; first.ImageRef != "r@d" || second.RequestID != "b" {
		t.Errorf("reacted to %+v, %+v", first, second)
	}
	stop()
	if err := <-ended; err != nil || len(seen) != 0 {
		t.Errorf("%v, and to %d more", err, len(seen))
	}
}
