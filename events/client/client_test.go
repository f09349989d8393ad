package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start returns a connection to a provisioned server of its own, and what ends both.
func start(dir string) (*nats.Conn, *natsbus.Bus, func(), error) {
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return nil, nil, nil, err
	}
	s.Start()
	nc, err := natsbus.Connect(natsbus.Config{Options: []nats.Option{nats.InProcessServer(s)}})
	if err != nil {
		return nil, nil, nil, err
	}
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err == nil {
		_, err = natsbus.Provision(context.Background(), bus.JetStream(), natsbus.Topology{})
	}
	return nc, bus, func() { nc.Close(); s.Shutdown(); s.WaitForShutdown() }, err
}

func setup(t *testing.T) (*client.Client, *natsbus.Bus) {
	t.Helper()
	nc, bus, stop, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	c, err := client.New(nc, client.WithSource("/test"))
	if err != nil {
		t.Fatal(err)
	}
	return c, bus
}

func request(name string) events.BuildRequest {
	return events.BuildRequest{Function: fmt.Appendf(nil,
		`{"kind":"job","metadata":{"name":%q,"project":"demo"},"spec":{"build":{"base_image":"a","commands":["ls"]}}}`, name)}
}

var buildID = strings.Repeat("a", 64)

func started(id string) events.Event {
	at := time.Now().UTC()
	return events.Event{ID: events.EventID(id, events.TypeBuildStarted, 1), Source: "/w", Type: events.TypeBuildStarted, Time: at, Data: &events.BuildStarted{
		RequestID: id, BuildID: buildID, Function: events.Function{Project: "demo", Name: "f", Tag: "latest"}, Image: "i",
		Base: events.Base{Ref: "a"}, Attempt: 1, Engine: "fake", Worker: "w", LogSubject: "build.log." + buildID, Started: at,
	}}
}

func completed(id string) events.Event {
	at := time.Now().UTC()
	digest := "sha256:" + strings.Repeat("b", 64)
	return events.Event{ID: events.EventID(id, events.TypeBuildCompleted, 0), Source: "/w", Type: events.TypeBuildCompleted, Time: at, Data: &events.BuildCompleted{
		RequestID: id, BuildID: buildID, Function: events.Function{Project: "demo", Name: "f", Tag: "latest"}, Outcome: events.OutcomeBuilt,
		Reason: "Because.", Image: "i", Digest: digest, ImageRef: "i@" + digest, Base: events.Base{Ref: "a"}, Attempt: 1, Engine: "fake",
		Timings: events.Timings{Requested: at, Started: at, Finished: at},
	}}
}

func failed(id string) events.Event {
	at := time.Now().UTC()
	return events.Event{ID: events.EventID(id, events.TypeBuildFailed, 0), Source: "/w", Type: events.TypeBuildFailed, Time: at, Data: &events.BuildFailed{
		RequestID: id, Function: events.Function{Project: "other", Name: "g", Tag: "latest"},
		Error: events.FailureCause{Code: "command_failed", Message: "m", Hint: "h"}, Timings: events.Timings{Requested: at, Started: at, Finished: at},
	}}
}

func publish(t *testing.T, bus *natsbus.Bus, all ...events.Event) {
	t.Helper()
	for _, e := range all {
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRequestArrivesAsAValidEventWithItsTrace(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	ticket, err := c.RequestBuild(trace.ContextWithSpanContext(t.Context(), span), request("f"))
	if err != nil {
		t.Fatal(err)
	}
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := queue.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(d.Event())
	if err != nil || e.ID != ticket.ID || d.Sequence() != ticket.Sequence || e.Source != "/test" {
		t.Errorf("arrived as %+v (%v), want ticket %+v", e, err, ticket)
	}
	if !strings.Contains(e.TraceParent, span.TraceID().String()) {
		t.Errorf("traceparent = %q", e.TraceParent)
	}
}

func TestSameIDIsStoredOnce(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	first, err := c.RequestBuild(t.Context(), request("f"), client.WithID("r1"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.RequestBuild(t.Context(), request("f"), client.WithID("r1"))
	if err != nil || first != second {
		t.Errorf("tickets %+v and %+v (%v), want the same", first, second, err)
	}
}

func TestInvalidRequestIsNotSent(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	_, err := c.RequestBuild(t.Context(), events.BuildRequest{Function: []byte(`{"kind":"job"}`)})
	if broken, ok := errors.AsType[*events.DecodeError](err); !ok || len(broken.Violations) == 0 {
		t.Errorf("RequestBuild() = %v, want violations", err)
	}
	if all, err := c.List(t.Context(), client.Query{}); err != nil || len(all) != 0 {
		t.Errorf("List() = %+v, %v", all, err)
	}
}

func TestUnprovisionedServerSaysWhatToDo(t *testing.T) {
	t.Parallel()
	nc, bus, stop, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if err := bus.JetStream().DeleteStream(t.Context(), "BUILD"); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestBuild(t.Context(), request("f")); err == nil || !strings.Contains(err.Error(), "kiln provision") {
		t.Errorf("RequestBuild() = %v", err)
	}
}

func TestAwaitSeesWhatIsStoredAndWhatComes(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	early, err := c.RequestBuild(t.Context(), request("f"), client.WithID("early"))
	if err != nil {
		t.Fatal(err)
	}
	late, err := c.RequestBuild(t.Context(), request("f"), client.WithID("late"))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, bus, started("early"), completed("early"))
	if r, err := c.Await(t.Context(), early); err != nil || r.Completed == nil || r.Completed.RequestID != "early" {
		t.Errorf("Await(early) = %+v, %v", r, err)
	}
	if r, err := c.Await(t.Context(), client.Ticket{ID: "early"}); err != nil || r.Completed == nil {
		t.Errorf("Await(early without sequence) = %+v, %v", r, err)
	}
	result := make(chan client.Result, 1)
	go func() {
		r, _ := c.Await(t.Context(), late)
		result <- r
	}()
	publish(t, bus, started("late"), failed("late"))
	if r := <-result; r.Failed == nil || r.Failed.RequestID != "late" {
		t.Errorf("Await(late) = %+v", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Await(ctx, client.Ticket{ID: "never"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await(never) = %v", err)
	}
}

func TestListFoldsTheEvents(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	for _, id := range []string{"queued", "building", "done", "broken"} {
		if _, err := c.RequestBuild(t.Context(), request(id), client.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, bus, started("building"), started("done"), completed("done"), failed("broken"))
	all, err := c.List(t.Context(), client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]client.State{}
	for _, s := range all {
		got[s.RequestID] = s.State
	}
	want := map[string]client.State{"queued": "queued", "building": "building", "done": "completed", "broken": "failed"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	if some, err := c.List(t.Context(), client.Query{Project: "demo", Limit: 2}); err != nil || len(some) != 2 || some[1].RequestID != "done" {
		t.Errorf("List(demo, 2) = %+v, %v", some, err)
	}
	for _, id := range []string{"done", buildID} {
		if s, err := c.Status(t.Context(), id); err != nil || s.BuildID != buildID {
			t.Errorf("Status(%.8s) = %+v, %v", id, s, err)
		}
	}
	if _, err := c.Status(t.Context(), "nobody"); !errors.Is(err, client.ErrUnknown) {
		t.Errorf("Status(nobody) = %v", err)
	}
}

func TestLogsAreRead(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	w := bus.Logs().Open(buildID, 1)
	fmt.Fprintln(w, "hello")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Logs(t.Context(), buildID, 1, true, &out); err != nil || out.String() != "hello\n" {
		t.Errorf("Logs() = %q, %v", out.String(), err)
	}
}

// exampleServer stands for a server with a worker that completes one request.
func exampleServer() (*nats.Conn, func()) {
	dir, err := os.MkdirTemp("", "kiln-example-")
	if err != nil {
		panic(err)
	}
	nc, bus, stop, err := start(dir)
	if err != nil {
		panic(err)
	}
	go func() {
		queue, err := bus.Queue(context.Background())
		if err != nil {
			return
		}
		d, err := queue.Next(context.Background())
		if err != nil {
			return
		}
		e, _ := events.Decode(d.Event())
		logs := bus.Logs().Open(buildID, 1)
		_ = bus.Publish(context.Background(), started(e.ID))
		fmt.Fprintln(logs, "building")
		_ = logs.Close()
		_ = bus.Publish(context.Background(), completed(e.ID))
		_ = d.Ack(context.Background())
	}()
	return nc, func() { stop(); _ = os.RemoveAll(dir) }
}

func ExampleClient_RequestBuild() {
	nc, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	c, err := client.New(nc)
	if err != nil {
		panic(err)
	}
	ticket, err := c.RequestBuild(ctx, events.BuildRequest{Function: []byte(`{
		"kind": "job",
		"metadata": {"name": "trainer", "project": "demo"},
		"spec": {"build": {"base_image": "python:3.12-slim", "requirements": ["numpy"]}}
	}`)})
	if err != nil {
		panic(err)
	}
	result, err := c.Await(ctx, ticket)
	if err != nil {
		panic(err)
	}
	if result.Failed != nil {
		fmt.Println(result.Failed.Error.Code, result.Failed.Error.Hint)
		return
	}
	fmt.Println(result.Completed.Outcome)
	// Output: built
}

func ExampleClient_Watch() {
	nc, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	c, err := client.New(nc)
	if err != nil {
		panic(err)
	}
	ticket, err := c.RequestBuild(ctx, request("trainer"))
	if err != nil {
		panic(err)
	}
	err = c.Watch(ctx, ticket, func(e events.Event) bool {
		fmt.Println(e.Type)
		if s, ok := e.Data.(*events.BuildStarted); ok {
			_ = c.Logs(ctx, s.BuildID, s.Attempt, true, os.Stdout)
		}
		return true
	})
	if err != nil {
		panic(err)
	}
	// Output:
	// build.started
	// building
	// build.completed
}
