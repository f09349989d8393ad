package natsbus_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/events/natsbus"
)

func TestNextFetchesExactlyOne(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	for i := range 20 {
		publishRequest(t, bus, strconv.Itoa(i))
	}
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := queue.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.Event().FallbackID != "seq:BUILD:1" || d.Event().Time.IsZero() || d.Event().Header["Nats-Msg-Id"][0] != "0" {
		t.Errorf("event = %+v", d.Event())
	}
	consumer, err := bus.JetStream().Consumer(t.Context(), "BUILD", "build-workers")
	if err != nil {
		t.Fatal(err)
	}
	// The server counts what waits a moment after it stored it.
	eventually(t, "19 are waiting", func() bool { return must(consumer.Info(t.Context())).NumPending == 19 })
	if info := must(consumer.Info(t.Context())); info.NumAckPending != 1 {
		t.Errorf("consumer has %d outstanding, want 1", info.NumAckPending)
	}
}

func TestSlotsShareTheRequests(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const slots, requests = 4, 40
	got := make(chan uint64, requests)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range slots {
		group.Go(func() {
			for {
				d, err := queue.Next(ctx)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err := d.Ack(ctx); err != nil {
					t.Error(err)
				}
				got <- d.Sequence()
			}
		})
	}
	for i := range requests {
		publishRequest(t, bus, strconv.Itoa(i))
	}
	seen := map[uint64]bool{}
	for range requests {
		seen[<-got] = true
	}
	cancel()
	group.Wait()
	if len(seen) != requests || len(got) != 0 {
		t.Errorf("%d different requests and %d more, want %d and none", len(seen), len(got), requests)
	}
}

func TestNextReturnsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	queue, err := newBus(t, natsbus.Topology{}).Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if d, err := queue.Next(ctx); d != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next() = %v, %v", d, err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Next() took %s to notice", took)
	}
}

func TestProgressKeepsAMessageAndSilenceLosesIt(t *testing.T) {
	t.Parallel()
	const ackWait = time.Second
	bus := newBus(t, natsbus.Topology{AckWait: ackWait})
	publishRequest(t, bus, "r")
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := queue.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := make(chan *natsbus.Delivery, 1)
	go func() {
		d, _ := queue.Next(t.Context())
		again <- d
	}()
	alive := time.NewTicker(ackWait / 4)
	defer alive.Stop()
	for range 10 {
		select {
		case <-alive.C:
			if err := first.InProgress(t.Context()); err != nil {
				t.Fatal(err)
			}
		case <-again:
			t.Fatal("redelivered although it was in progress")
		}
	}
	second := <-again
	if second == nil || second.Sequence() != first.Sequence() {
		t.Fatalf("redelivery = %+v", second)
	}
	// A late ack of the earlier delivery is accepted: an ack is no proof of ownership.
	if err := first.Ack(t.Context()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(first.Ack(t.Context()), second.Ack(t.Context())); err != nil {
		t.Errorf("acking again: %v", err)
	}
}

func TestNakBringsTheMessageBackAfterItsDelay(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	publishRequest(t, bus, "r")
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, delay := range []time.Duration{0, 400 * time.Millisecond} {
		d, err := queue.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := d.Nak(t.Context(), delay); err != nil {
			t.Fatal(err)
		}
		if d, err = queue.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < delay {
			t.Errorf("came back after %s, want at least %s", took, delay)
		}
		if err := d.Nak(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueueTellsItsAckWait(t *testing.T) {
	t.Parallel()
	queue, err := newBus(t, natsbus.Topology{AckWait: 7 * time.Second}).Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := queue.AckWait(); got != 7*time.Second {
		t.Errorf("AckWait() = %s, want 7s", got)
	}
}

func TestPendingCountsWhatNoWorkerWasGiven(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	queue := must(bus.Queue(t.Context()))
	for i := range 3 {
		publishRequest(t, bus, strconv.Itoa(i))
	}
	// The server counts a moment after it stored.
	eventually(t, "3 are pending", func() bool { return must(queue.Pending(t.Context())) == 3 })
	must(queue.Next(t.Context()))
	eventually(t, "2 are pending, with one in hand", func() bool { return must(queue.Pending(t.Context())) == 2 })
	if err := bus.JetStream().DeleteConsumer(t.Context(), "BUILD", "build-workers"); err != nil {
		t.Fatal(err)
	}
	if _, err := queue.Pending(t.Context()); err == nil || !strings.Contains(err.Error(), "kiln provision") {
		t.Errorf("Pending() without the consumer = %v", err)
	}
}
