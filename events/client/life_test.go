package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

func emit(id string, typ events.Type, attempt int, data any) events.Event {
	return events.Event{ID: events.EventID(id, typ, attempt), Source: "/w", Type: typ, Time: time.Now().UTC(), Data: data}
}

var trainer = events.Function{Project: "demo", Name: "f", Tag: "latest"}

func queued(id string, position int) events.Event {
	return emit(id, events.TypeBuildQueued, 0, &events.BuildQueued{
		RequestID: id, BuildID: buildID, Function: trainer, Image: "i", Priority: events.PriorityAuto, Position: position,
		Reason: "Others go first.", EstimatedStart: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Queued: time.Now().UTC(),
	})
}

func canceled(id, by string) events.Event {
	at := time.Now().UTC()
	return emit(id, events.TypeBuildCanceled, 0, &events.BuildCanceled{
		RequestID: id, Reason: "Not wanted.", SupersededBy: by, Timings: events.Timings{Requested: at, Started: at, Finished: at},
	})
}

func died(id string, sequence uint64) events.Event {
	return emit(id, events.TypeBuildDead, 0, &events.BuildDead{
		RequestID: id, Function: trainer, Attempts: 5, Sequence: sequence, Failed: time.Now().UTC(), Request: request("f"),
		Error: events.FailureCause{Code: "unavailable", Message: "m", Hint: "h", Retryable: true},
	})
}

func TestWaitingRequestsMoveUpWhenBuildsStart(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	publish(t, bus, started("early"))
	for _, id := range []string{"first", "third", "shares"} {
		if _, err := c.RequestBuild(t.Context(), request("f"), client.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, bus, queued("first", 1), queued("third", 3), queued("shares", 0))
	want := func(positions map[string]int) {
		t.Helper()
		got := map[string]int{}
		for id := range positions {
			s, err := c.Status(t.Context(), id)
			if err != nil || s.State != client.StateQueued || s.BuildID != buildID || s.Image != "i" || s.Queued.EstimatedStart.IsZero() {
				t.Errorf("Status(%s) = %+v, %v", id, s, err)
			}
			got[id] = s.Queued.Position
		}
		if diff := cmp.Diff(positions, got); diff != "" {
			t.Errorf("positions (-want +got):\n%s", diff)
		}
	}
	want(map[string]int{"first": 1, "third": 3, "shares": 0})
	publish(t, bus, started("first"))
	want(map[string]int{"third": 2, "shares": 0})
	for i := range 5 {
		publish(t, bus, started(strconv.Itoa(i)))
	}
	want(map[string]int{"third": 1, "shares": 0})
	if s, err := c.Status(t.Context(), "first"); err != nil || s.State != client.StateBuilding || s.Queued != nil {
		t.Errorf("Status() of one that started = %+v, %v", s, err)
	}
}

func TestCanceledRequestEndsAsSuch(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	ticket, err := c.RequestBuild(t.Context(), request("f"), client.WithID("r"))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, bus, queued("r", 2), canceled("r", "newer"), completed("r"))
	r, err := c.Await(t.Context(), ticket)
	if err != nil || r.Canceled == nil || r.Canceled.SupersededBy != "newer" || r.Completed != nil || r.Failed != nil {
		t.Errorf("Await() = %+v, %v", r, err)
	}
	var seen []events.Type
	if err := c.Watch(t.Context(), ticket, func(e events.Event) bool { seen = append(seen, e.Type); return true }); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]events.Type{events.TypeBuildQueued, events.TypeBuildCanceled}, seen); diff != "" {
		t.Errorf("watched (-want +got):\n%s", diff)
	}
	s, err := c.Status(t.Context(), "r")
	if err != nil || s.State != client.StateCanceled || s.Canceled == nil || s.Completed != nil || s.Queued != nil || s.Function != trainer || s.BuildID != buildID {
		t.Errorf("Status() = %+v, %v", s, err)
	}
}

func TestCancelArrivesAsAValidEventOnce(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	want := events.BuildCancel{BuildID: buildID, Reason: "No longer wanted."}
	for range 2 {
		if err := c.Cancel(t.Context(), want, client.WithID("c")); err != nil {
			t.Fatal(err)
		}
	}
	cancels, err := bus.Cancels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := cancels.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(d.Event())
	if got, ok := e.Data.(*events.BuildCancel); err != nil || !ok || *got != want || e.ID != "c" || e.Source != "/test" {
		t.Errorf("arrived as %+v with %+v, %v", e, got, err)
	}
	if _, err := cancels.Read(t.Context(), d.Sequence()+1); !errors.Is(err, natsbus.ErrNotFound) {
		t.Errorf("a second cancel is stored (%v)", err)
	}
}

func TestInvalidCancelIsNotSent(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	for name, cancel := range map[string]events.BuildCancel{
		"no id":    {Reason: "x"},
		"both ids": {RequestID: "r", BuildID: buildID},
		"build id": {BuildID: "latest"},
		"reason":   {RequestID: "r", Reason: strings.Repeat("x", 1001)},
	} {
		if _, ok := errors.AsType[*events.DecodeError](c.Cancel(t.Context(), cancel)); !ok {
			t.Errorf("%s: no violations", name)
		}
	}
	stored := 0
	err := bus.Scan(t.Context(), []events.Type{events.TypeBuildCancel}, natsbus.Start{}, func(events.Message) bool { stored++; return true })
	if err != nil || stored != 0 {
		t.Errorf("%d are stored, %v", stored, err)
	}
}

func TestDeadRequestsAreRedrivenOnce(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	long := strings.Repeat("x", 200)
	ids := []string{"r", "seq:BUILD:7", long}
	for i, id := range ids {
		publish(t, bus, died(id, uint64(i+1)))
	}
	listed := func(want ...string) {
		t.Helper()
		dead, err := c.Dead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range dead {
			got = append(got, d.RequestID)
		}
		if !slices.Equal(want, got) {
			t.Errorf("dead are %.20q, want %.20q", got, want)
		}
	}
	listed(ids...)
	var first client.Ticket
	for i, id := range ids {
		ticket, err := c.Redrive(t.Context(), id)
		if err != nil || ticket.Sequence == 0 || !strings.HasSuffix(ticket.ID, ".redrive.1") {
			t.Fatalf("Redrive(%.10s) = %+v, %v", id, ticket, err)
		}
		if again, err := c.Redrive(t.Context(), id); err != nil || again != ticket {
			t.Errorf("Redrive(%.10s) again = %+v, %v, want %+v", id, again, err, ticket)
		}
		if i == 0 {
			first = ticket
		}
		listed(ids[i+1:]...)
	}
	if first.ID != "r.redrive.1" {
		t.Errorf("redriven as %s", first.ID)
	}
	publish(t, bus, died(first.ID, first.Sequence))
	listed(first.ID)
	if second, err := c.Redrive(t.Context(), first.ID); err != nil || second.ID != "r.redrive.2" {
		t.Errorf("Redrive(%s) = %+v, %v", first.ID, second, err)
	}
	listed()
	if _, err := c.Redrive(t.Context(), "nobody"); !errors.Is(err, client.ErrUnknown) {
		t.Errorf("Redrive(nobody) = %v", err)
	}
}

func TestRedrivenRequestIsTheSame(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	flag := events.Flag(true)
	want := request("f")
	want.WithMLRun, want.ForceBuild, want.BuilderEnv = &flag, true, map[string]string{"A": "b"}
	want.Options = events.Options{Timeout: "5m", Secrets: []string{}, Priority: events.PriorityBulk, Supersede: true}
	dead := died("r", 1)
	dead.Data.(*events.BuildDead).Request = want
	publish(t, bus, dead)
	if _, err := c.Redrive(t.Context(), "r"); err != nil {
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
	if diff := cmp.Diff(&want, e.Data); diff != "" || err != nil {
		t.Errorf("%v, request (-want +got):\n%s", err, diff)
	}
}

// exampleLife stands for a server with a worker that cancels what it is told to cancel,
// and on which one request was given up before.
func exampleLife() (*client.Client, func()) {
	dir, err := os.MkdirTemp("", "kiln-example-")
	if err != nil {
		panic(err)
	}
	nc, bus, stop, err := start(dir)
	if err != nil {
		panic(err)
	}
	if err := bus.Publish(context.Background(), died("nightly", 1)); err != nil {
		panic(err)
	}
	ctx, end := context.WithCancel(context.Background())
	var worker sync.WaitGroup
	worker.Go(func() {
		cancels, err := bus.Cancels(ctx)
		if err != nil {
			return
		}
		d, err := cancels.Next(ctx)
		if err != nil {
			return
		}
		e, _ := events.Decode(d.Event())
		if cancel, ok := e.Data.(*events.BuildCancel); ok {
			_ = bus.Publish(ctx, canceled(cancel.RequestID, ""))
		}
		_ = d.Ack(ctx)
	})
	c, err := client.New(nc)
	if err != nil {
		panic(err)
	}
	return c, func() { end(); worker.Wait(); stop(); _ = os.RemoveAll(dir) }
}

func ExampleClient_Cancel() {
	c, stop := exampleLife()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	ticket, err := c.RequestBuild(ctx, request("trainer"))
	if err != nil {
		panic(err)
	}
	if err := c.Cancel(ctx, events.BuildCancel{RequestID: ticket.ID, Reason: "Not wanted."}); err != nil {
		panic(err)
	}
	result, err := c.Await(ctx, ticket)
	if err != nil {
		panic(err)
	}
	if result.Canceled == nil {
		fmt.Println("too late")
		return
	}
	fmt.Println(result.Canceled.Reason)
	// Output: Not wanted.
}

func ExampleClient_Redrive() {
	c, stop := exampleLife()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	dead, err := c.Dead(ctx)
	if err != nil {
		panic(err)
	}
	for _, d := range dead {
		ticket, err := c.Redrive(ctx, d.RequestID)
		if err != nil {
			panic(err)
		}
		fmt.Println(d.RequestID, "is now", ticket.ID)
	}
	// Output: nightly is now nightly.redrive.1
}
