package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

// serve runs a server on a given port and store until stop is called.
func serve(t *testing.T, port int, dir string) (stop func()) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("server does not start")
	}
	return func() {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

func TestAwaitAndRequestSurviveARestart(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port, dir := listener.Addr().(*net.TCPAddr).Port, t.TempDir()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	stop := serve(t, port, dir)
	nc, err := natsbus.Connect(natsbus.Config{URL: fmt.Sprintf("nats://127.0.0.1:%d", port), Options: []nats.Option{nats.ReconnectWait(20 * time.Millisecond)}})
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
	c, err := client.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := c.RequestBuild(t.Context(), request("f"))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, bus, started(ticket.ID))
	begun := make(chan struct{})
	result := make(chan client.Result, 1)
	go func() {
		var r client.Result
		err := c.Watch(t.Context(), ticket, func(e events.Event) bool {
			switch data := e.Data.(type) {
			case *events.BuildStarted:
				close(begun)
			case *events.BuildCompleted:
				r.Completed = data
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
		result <- r
	}()
	<-begun

	stop()
	second := make(chan error, 1)
	go func() {
		_, err := c.RequestBuild(t.Context(), request("g"), client.WithID("second"))
		second <- err
	}()
	defer serve(t, port, dir)()

	if err := <-second; err != nil {
		t.Errorf("RequestBuild() during the outage = %v", err)
	}
	publish(t, bus, completed(ticket.ID))
	if r := <-result; r.Completed == nil || r.Completed.RequestID != ticket.ID {
		t.Errorf("Watch() saw %+v", r)
	}
	if r, err := c.Await(t.Context(), ticket); err != nil || r.Completed == nil {
		t.Errorf("Await() = %+v, %v", r, err)
	}
}

func TestRequestThatIsTooLargeIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	_, err := c.RequestBuild(t.Context(), request(strings.Repeat("x", 2<<20)))
	if err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("RequestBuild() = %v, want one that tells the size", err)
	}
}

func TestUnusableIDsAreRefused(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	for _, id := range []string{"", "a b", "seq:BUILD:1", "a\nb", strings.Repeat("a", 201)} {
		if ticket, err := c.RequestBuild(t.Context(), request("f"), client.WithID(id)); err == nil {
			t.Errorf("id %q gives ticket %+v", id, ticket)
		}
	}
}

func TestARequestWithoutAnEndCanBeAbandoned(t *testing.T) {
	t.Parallel()
	c, _ := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Await(ctx, client.Ticket{ID: "nobody", Sequence: 99})
		done <- err
	}()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Await() = %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Await() does not end with its context")
	}
}

func TestTerminalEventThatCannotBeReadEndsTheWait(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	broken := completed("r")
	broken.Data = map[string]string{"request_id": "r", "news": "from a later version"}
	publish(t, bus, broken)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Await(ctx, client.Ticket{ID: "r"})
	if _, ok := errors.AsType[*events.DecodeError](err); !ok {
		t.Errorf("Await() = %v, want the reason why it cannot be read", err)
	}
}

func TestStatusIsWhatTheFirstTerminalEventSays(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	if _, err := c.RequestBuild(t.Context(), request("f"), client.WithID("r")); err != nil {
		t.Fatal(err)
	}
	early := failed("r")
	early.Data.(*events.BuildFailed).Function = events.Function{}
	publish(t, bus, early, started("r"), completed("r"))
	s, err := c.Status(t.Context(), "r")
	if err != nil || s.State != client.StateFailed || s.Completed != nil || s.Failed == nil {
		t.Errorf("Status() = %+v, %v", s, err)
	}
	if want := (events.Function{Project: "demo", Name: "f", Tag: "latest"}); s.Function != want {
		t.Errorf("function = %+v, want that of the request: %+v", s.Function, want)
	}
}

func TestUndecodableMessagesAreListedWithTheirFallbackID(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	for subject, data := range map[string]string{"build.requested": "no JSON", "build.completed": "no JSON either"} {
		if _, err := bus.JetStream().Publish(t.Context(), subject, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.List(t.Context(), client.Query{})
	if err != nil || len(all) != 1 || !strings.HasPrefix(all[0].RequestID, "seq:BUILD:") || all[0].State != client.StateQueued {
		t.Errorf("List() = %+v, %v", all, err)
	}
}

func TestSinceLeavesOutWhatWasRequestedBefore(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	old, err := c.RequestBuild(t.Context(), request("old"))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := bus.JetStream().Stream(t.Context(), "BUILD")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), old.Sequence)
	if err != nil {
		t.Fatal(err)
	}
	since := msg.Time.Add(time.Nanosecond)
	fresh, err := c.RequestBuild(t.Context(), request("fresh"))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, bus, completed(old.ID))
	all, err := c.List(t.Context(), client.Query{Since: since})
	if err != nil || len(all) != 1 || all[0].RequestID != fresh.ID {
		t.Errorf("List() = %+v, %v; want %s only", all, err, fresh.ID)
	}
}

func TestPrefixSeparatesClients(t *testing.T) {
	t.Parallel()
	nc, _, stop, err := start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	topology := natsbus.Topology{Prefix: "acme"}
	acme, err := natsbus.New(nc, topology)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), acme.JetStream(), topology); err != nil {
		t.Fatal(err)
	}
	ours, err := client.New(nc, client.WithPrefix("acme"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := client.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.RequestBuild(t.Context(), request("f"), client.WithID("r")); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Status(t.Context(), "r"); err != nil {
		t.Error(err)
	}
	if s, err := theirs.Status(t.Context(), "r"); !errors.Is(err, client.ErrUnknown) {
		t.Errorf("the other Kiln sees %+v, %v", s, err)
	}
	if _, err := client.New(nc, client.WithPrefix("a.>")); err == nil {
		t.Error("a prefix with a wildcard is taken")
	}
}

func ExampleClient_Logs() {
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
	result, err := c.Await(ctx, ticket)
	if err != nil {
		panic(err)
	}
	// Attempt 0 is all attempts; without follow it ends with what is stored.
	if err := c.Logs(ctx, result.Completed.BuildID, 0, false, os.Stdout); err != nil {
		panic(err)
	}
	// Output: building
}
