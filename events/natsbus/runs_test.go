package natsbus_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"kiln/events"
	"kiln/events/natsbus"
)

func TestALogThatWasLeftGoesOn(t *testing.T) {
	t.Parallel()
	logs := newBus(t, natsbus.Topology{}).RunLogs()
	key := events.RunKey("r")
	first := logs.Resume(key, 1)
	fmt.Fprintln(first, "before")
	if err := first.Leave(); err != nil {
		t.Fatal(err)
	}
	if n, err := logs.Stored(t.Context(), key, 1); n != int64(len("before\n")) || err != nil {
		t.Errorf("Stored() = %d, %v", n, err)
	}
	if n, err := logs.Stored(t.Context(), key, 2); n != 0 || err != nil {
		t.Errorf("Stored() of another attempt = %d, %v", n, err)
	}
	var text bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- logs.Read(t.Context(), key, 1, true, &text) }()
	second := logs.Resume(key, 1)
	fmt.Fprintln(second, "after")
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || text.String() != "before\nafter\n" {
		t.Errorf("Read() = %q, %v", text.String(), err)
	}
}

func TestResultsOfBuildsReachTheTriggersAndNothingElseDoes(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	publishRequest(t, bus, "r")
	if err := bus.Publish(t.Context(), failed("r")); err != nil {
		t.Fatal(err)
	}
	builds := must(bus.RunBuilds(t.Context()))
	d := must(builds.Next(t.Context()))
	if d.Event().Subject != "build.failed" {
		t.Errorf("got %s", d.Event().Subject)
	}
	if err := d.Ack(t.Context()); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if d, err := builds.Next(short); d != nil || err == nil {
		t.Errorf("then came %v, %v", d, err)
	}
}

func TestRunsHaveAStreamOfTheirOwn(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{Prefix: "acme"})
	e := events.Event{
		ID: events.EventID("r", events.TypeRunCanceled, 0), Source: "/t", Type: events.TypeRunCanceled, Time: time.Now().UTC(),
		Data: &events.RunCanceled{RunID: "r", Reason: "x"},
	}
	for range 2 {
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	count := 0
	err := bus.Scan(t.Context(), events.RunTypes(), natsbus.Start{}, func(m events.Message) bool {
		count++
		return m.FallbackID == "seq:ACME_RUN:1"
	})
	if out, other := bus.Published(t.Context(), e.Type, e.ID, time.Time{}); count != 1 || err != nil || !out || other != nil {
		t.Errorf("%d events, %v; published %v, %v", count, err, out, other)
	}
}
