package natsbus_test

import (
	"errors"
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
	all := []string{
		"stream BUILD", "stream BUILD_LOG", "stream RUN", "stream RUN_LOG", "consumer BUILD/build-workers", "consumer BUILD/build-cancels",
		"consumer RUN/run-triggers", "consumer RUN/run-cancels", "consumer BUILD/run-builds",
		"bucket KILN_LEDGER", "bucket KILN_BACKLOG", "bucket KILN_CONTEXT", "bucket KILN_RUNS",
	}
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
		{Object: "stream RUN", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit RUN --max-age=1h0m0s"},
		{Object: "consumer build-workers", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit BUILD build-workers --wait=1m0s"},
		{Object: "consumer build-cancels", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit BUILD build-cancels --wait=1m0s"},
		{Object: "consumer run-triggers", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit RUN run-triggers --wait=1m0s"},
		{Object: "consumer run-cancels", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit RUN run-cancels --wait=1m0s"},
		{Object: "consumer run-builds", Field: "ack wait", Want: "1m0s", Have: "30s", Repair: "nats consumer edit BUILD run-builds --wait=1m0s"},
		{Object: "bucket KILN_LEDGER", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit KV_KILN_LEDGER --max-age=1h0m0s"},
		{Object: "bucket KILN_BACKLOG", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit KV_KILN_BACKLOG --max-age=1h0m0s"},
		{Object: "bucket KILN_RUNS", Field: "max age", Want: "1h0m0s", Have: "720h0m0s", Repair: "nats stream edit KV_KILN_RUNS --max-age=1h0m0s"},
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
	_, cancelErr := bus.Cancels(t.Context())
	_, ledgerErr := bus.Ledger(t.Context())
	_, backlogErr := bus.Backlog(t.Context())
	_, runsErr := bus.Runs(t.Context())
	_, runRequestsErr := bus.RunRequests(t.Context())
	for _, err := range []error{queueErr, cancelErr, ledgerErr, backlogErr, runsErr, runRequestsErr} {
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
