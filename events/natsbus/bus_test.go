package natsbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"kiln/events"
	"kiln/events/natsbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startServer runs a server with JetStream in this process.
func startServer(t *testing.T, change func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	if change != nil {
		change(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("server does not start")
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s
}

func connect(t *testing.T, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := natsbus.Connect(natsbus.Config{Options: []nats.Option{nats.InProcessServer(s)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// newBus returns a provisioned bus.
func newBus(t *testing.T, topology natsbus.Topology) *natsbus.Bus {
	t.Helper()
	bus, err := natsbus.New(connect(t, startServer(t, nil)), topology)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), bus.JetStream(), topology); err != nil {
		t.Fatal(err)
	}
	return bus
}

func publishRequest(t *testing.T, bus *natsbus.Bus, id string) {
	t.Helper()
	_, err := bus.JetStream().Publish(t.Context(), bus.Subjects().Of(events.TypeBuildRequested), []byte(id), jetstream.WithMsgID(id))
	if err != nil {
		t.Fatal(err)
	}
}

func failed(id string) events.Event {
	return events.Event{
		ID: events.EventID(id, events.TypeBuildFailed, 0), Source: "/test", Type: events.TypeBuildFailed, Time: time.Now().UTC(),
		Data: &events.BuildFailed{RequestID: id, Error: events.FailureCause{Code: "canceled", Message: "m", Hint: "h"}},
	}
}

func TestProvisionCreatesThenChangesNothing(t *testing.T) {
	t.Parallel()
	bus, err := natsbus.New(connect(t, startServer(t, nil)), natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"stream BUILD", "stream BUILD_LOG", "consumer BUILD/build-workers", "bucket KILN_LEDGER"}
	first, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]natsbus.Report{{Created: all}, {Unchanged: all}}, []natsbus.Report{first, second}); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

func TestDriftIsShownAndNothingIsChanged(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	_, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{MaxAge: time.Hour, AckWait: time.Minute})
	drift, ok := errors.AsType[*natsbus.DriftError](err)
	if !ok {
		t.Fatalf("Provision() = %v, want a *DriftError", err)
	}
	want := []natsbus.Difference{
		{Object: "stream BUILD", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit BUILD --max-age=1h0m0s"},
		{Object: "consumer build-workers", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit BUILD build-workers --wait=1m0s"},
		{Object: "bucket KILN_LEDGER", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit KV_KILN_LEDGER --max-age=1h0m0s"},
	}
	if diff := cmp.Diff(want, drift.Differences); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	if _, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{}); err != nil {
		t.Errorf("after the refused one: %v", err)
	}
}

func TestTwoProvisionersAtOnceAgree(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil)
	var group sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		bus, err := natsbus.New(connect(t, s), natsbus.Topology{})
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() { _, errs[i] = natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{}) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestUnprovisionedServerSaysWhatToDo(t *testing.T) {
	t.Parallel()
	bus, err := natsbus.New(connect(t, startServer(t, nil)), natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	_, queueErr := bus.Queue(t.Context())
	_, ledgerErr := bus.Ledger(t.Context())
	for _, err := range []error{queueErr, ledgerErr} {
		if err == nil || !strings.Contains(err.Error(), "kiln provision") {
			t.Errorf("error = %v, want one that names kiln provision", err)
		}
	}
}

func TestPrefixSeparatesTwoKilnsOnOneServer(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil)
	for _, prefix := range []string{"", "acme"} {
		bus, err := natsbus.New(connect(t, s), natsbus.Topology{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{Prefix: prefix}); err != nil {
			t.Fatal(err)
		}
		publishRequest(t, bus, "of "+prefix)
		queue, err := bus.Queue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d, err := queue.Next(t.Context())
		if err != nil || string(d.Event().Data) != "of "+prefix || d.Sequence() != 1 {
			t.Errorf("prefix %q: got %+v, %v", prefix, d, err)
		}
	}
}

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
	info, err := consumer.Info(t.Context())
	if err != nil || info.NumAckPending != 1 || info.NumPending != 19 {
		t.Errorf("consumer has %d outstanding and %d waiting (%v), want 1 and 19", info.NumAckPending, info.NumPending, err)
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
				if err := d.Ack(t.Context()); err != nil {
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

func TestPublishTwiceStoresOnceAndPublishedFindsIt(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	since := time.Now().Add(-time.Minute)
	e := failed("r")
	if out, err := bus.Published(t.Context(), e.Type, e.ID, since); out || err != nil {
		t.Errorf("Published() before = %v, %v", out, err)
	}
	for range 2 {
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Publish(t.Context(), failed("other")); err != nil {
		t.Fatal(err)
	}
	if out, err := bus.Published(t.Context(), e.Type, e.ID, since); !out || err != nil {
		t.Errorf("Published() after = %v, %v", out, err)
	}
	if out, err := bus.Published(t.Context(), e.Type, "nobody", since); out || err != nil {
		t.Errorf("Published(nobody) = %v, %v", out, err)
	}
	var seen []string
	err := bus.Scan(t.Context(), []events.Type{events.TypeBuildFailed}, natsbus.Start{}, func(m events.Message) bool {
		seen = append(seen, m.Header["Nats-Msg-Id"][0])
		return true
	})
	if diff := cmp.Diff([]string{"r.build.failed", "other.build.failed"}, seen); diff != "" || err != nil {
		t.Errorf("stored (-want +got):\n%s%v", diff, err)
	}
}

func TestTooLargeEventIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	e := failed("r")
	e.Data = &events.BuildFailed{RequestID: strings.Repeat("x", 2<<20)}
	if err := bus.Publish(t.Context(), e); !errors.Is(err, natsbus.ErrTooLarge) {
		t.Errorf("Publish() = %v, want ErrTooLarge", err)
	}
}

func TestLedgerComparesAndSets(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	ledger, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ledger.Get(t.Context(), "build.a"); !errors.Is(err, natsbus.ErrNotFound) {
		t.Errorf("Get(missing) = %v", err)
	}
	first, err := ledger.Put(t.Context(), "build.a", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("2"), 0); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("creating twice = %v, want ErrConflict", err)
	}
	second, err := ledger.Put(t.Context(), "build.a", []byte("2"), first)
	if err != nil || second <= first {
		t.Errorf("update = %d, %v", second, err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("3"), first); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("update of an old revision = %v, want ErrConflict", err)
	}
	if value, revision, err := ledger.Get(t.Context(), "build.a"); string(value) != "2" || revision != second || err != nil {
		t.Errorf("Get() = %s, %d, %v", value, revision, err)
	}
	kv, err := bus.JetStream().KeyValue(t.Context(), "KILN_LEDGER")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), "build.a"); err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("4"), 0); err != nil {
		t.Errorf("creating a deleted key = %v", err)
	}
}

func TestOnlyOneOfManyClaimsWins(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	ledger, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wins := make(chan int, 20)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if _, err := ledger.Put(t.Context(), "build.x", fmt.Append(nil, i), 0); err == nil {
				wins <- i
			} else if !errors.Is(err, natsbus.ErrConflict) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(wins) != 1 {
		t.Errorf("%d claims won", len(wins))
	}
}

func TestLogComesBackInOrderByAttempt(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	want := map[int]string{}
	for attempt := range 3 {
		w := bus.Logs().Open("b1", attempt+1)
		var text strings.Builder
		for line := range 500 {
			fmt.Fprintf(&text, "attempt %d line %d\n", attempt+1, line)
		}
		want[attempt+1] = text.String()
		// In chunks that do not end at lines.
		for rest := text.String(); rest != ""; rest = rest[min(777, len(rest)):] {
			if _, err := w.Write([]byte(rest[:min(777, len(rest))])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for attempt, text := range map[int]string{2: want[2], 0: want[1] + want[2] + want[3]} {
		for _, follow := range []bool{false, true} {
			var got bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := bus.Logs().Read(ctx, "b1", attempt, follow, &got); err != nil {
				t.Errorf("Read(attempt %d, follow %v) = %v", attempt, follow, err)
			}
			cancel()
			if got.String() != text {
				t.Errorf("attempt %d, follow %v: %d bytes, want %d", attempt, follow, got.Len(), len(text))
			}
		}
	}
}

func TestFollowedLogEndsWithItsAttempt(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	w := bus.Logs().Open("b1", 1)
	lines := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- bus.Logs().Read(t.Context(), "b1", 1, true, writerFunc(func(p []byte) (int, error) {
			lines <- string(p)
			return len(p), nil
		}))
	}()
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got := <-lines; got != line {
			t.Errorf("followed %q, want %q", got, line)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLogWithoutAServerDoesNotBlock(t *testing.T) {
	t.Parallel()
	nc := connect(t, startServer(t, nil))
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	w := bus.Logs().Open("b1", 1)
	for range 1000 {
		if _, err := w.Write(bytes.Repeat([]byte("x"), 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCarrierKeepsTheCaseThatOtherClientsUse(t *testing.T) {
	t.Parallel()
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	header := nats.Header{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(t.Context(), span), natsbus.Carrier(header))
	if len(header["traceparent"]) != 1 {
		t.Fatalf("header = %v, want traceparent in lower case", header)
	}
	back := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(t.Context(), natsbus.Carrier(header)))
	if back.TraceID() != span.TraceID() {
		t.Errorf("trace id %s, want %s", back.TraceID(), span.TraceID())
	}
	if got := (natsbus.Carrier{"b": nil, "a": nil}).Keys(); !cmp.Equal(got, []string{"a", "b"}) {
		t.Errorf("Keys() = %v", got)
	}
}
