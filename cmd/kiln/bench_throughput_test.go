//go:build bench

package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
	"kiln/events/natsbus"
	"kiln/worker"
)

// noRegistry has every image.
type noRegistry struct{}

const noDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func (r noRegistry) With(string) builder.Registry { return r }
func (noRegistry) Resolve(_ context.Context, ref, _ string) (builder.Image, error) {
	return builder.Image{Ref: ref, Digest: noDigest}, nil
}
func (noRegistry) Prepare(context.Context, string) error     { return nil }
func (noRegistry) Verify(context.Context, string) error      { return nil }
func (noRegistry) Tag(context.Context, string, string) error { return nil }

// noEngine builds nothing.
type noEngine struct{}

func (noEngine) Name() string { return "none" }
func (noEngine) Run(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
	return builder.Result{Digest: noDigest, Duration: time.Nanosecond}, nil
}

// TestBenchThroughput measures the way of a request without its build: four workers,
// their own connections, a real server on disk.
func TestBenchThroughput(t *testing.T) {
	const workers, requests = 4, 3000
	s, err := startNATS(t.TempDir(), "127.0.0.1:0", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	nc, err := nats.Connect(s.url())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for n := range workers {
		w := noopWorker(t, s.url(), fmt.Sprintf("w%d", n))
		running.Go(func() { _ = w.Run(ctx) })
	}
	for _, round := range []string{"built", "reused"} {
		before := stored(t, bus.JetStream())
		began := time.Now()
		publishAll(t, bus, round, requests)
		ended := 0
		err := bus.Follow(t.Context(), []events.Type{events.TypeBuildCompleted, events.TypeBuildFailed}, natsbus.Start{Time: began}, func(m events.Message) bool {
			if e, err := events.Decode(m); err != nil || e.Type != events.TypeBuildCompleted {
				t.Errorf("%s: %s (%v)", m.Subject, m.Data, err)
			}
			ended++
			return ended < requests
		})
		took := time.Since(began)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // for the last deletions
		t.Logf("%s: %.0f requests/s over %d workers, %.1f stored messages per request beside itself",
			round, requests/took.Seconds(), workers, float64(stored(t, bus.JetStream())-before-requests)/requests)
	}
}

func publishAll(t *testing.T, bus *natsbus.Bus, round string, n int) {
	t.Helper()
	var publishing sync.WaitGroup
	for lane := range 8 {
		publishing.Go(func() {
			for i := lane; i < n; i += 8 {
				body := fmt.Sprintf(`{"kind":"job","metadata":{"name":"f%d","project":"p%d"},"spec":{"build":{"base_image":"reg.example/base:1","commands":["echo %d"],"with_mlrun":false}}}`, i, i%7, i)
				m := events.Message{Subject: "build.requested", Data: []byte(body), Header: map[string][]string{"Nats-Msg-Id": {fmt.Sprintf("%s-%d", round, i)}}}
				if _, err := bus.Store(t.Context(), m); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishing.Wait()
}

// stored is how many messages all streams ever got.
func stored(t *testing.T, js jetstream.JetStream) uint64 {
	t.Helper()
	var n uint64
	for info := range js.ListStreams(t.Context()).Info() {
		n += info.State.LastSeq
	}
	return n
}

func noopWorker(t *testing.T, url, name string) *worker.Worker {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	requests, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cancels, err := bus.Cancels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	book, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unfinished, err := bus.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: noRegistry{}}, noEngine{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(worker.Config{Name: name, Slots: 4, Function: function.Config{Registry: "reg.example"}}, worker.Deps{
		Queue: queue{requests}, Cancels: queue{cancels}, Publisher: bus, History: stream{bus}, Ledger: ledger{book},
		Backlog: unfinishedRequests{unfinished}, Logs: bus.Logs(), Builder: b, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}
