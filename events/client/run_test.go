package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

func runRequest(name string) events.RunRequest {
	return events.RunRequest{Function: request(name).Function, AutoBuild: new(events.Flag(true)), Run: events.RunSpec{Name: "mine"}}
}

var imageRef = "r/i@sha256:" + strings.Repeat("b", 64)

// runEvents are the events of a run that succeeds, without the request.
func runEvents(id string) []events.Event {
	at, f := time.Now().UTC(), events.Function{Project: "demo", Name: "f", Tag: "latest"}
	event := func(typ events.Type, data any) events.Event {
		return events.Event{ID: events.EventID(id, typ, 1), Source: "/t", Type: typ, Time: at, Data: data}
	}
	return []events.Event{
		event(events.TypeRunWaiting, &events.RunWaiting{RunID: id, Function: f, Why: "Because.", RequestID: "q", Waiting: at}),
		event(events.TypeRunStarted, &events.RunStarted{
			RunID: id, Function: f, Attempt: 1, Runner: "fake", Trigger: "t", ImageRef: imageRef, LogSubject: "run.log.x", Started: at,
		}),
		event(events.TypeRunCompleted, &events.RunCompleted{
			RunID: id, Function: f, State: events.RunStateCompleted, Attempt: 1, Runner: "fake", ImageRef: imageRef,
			Timings: events.RunTimings{Requested: at, Finished: at},
		}),
	}
}

func TestRunIsRequestedAndAwaited(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	ticket, err := c.RequestRun(t.Context(), runRequest("f"), client.WithID("r"))
	if err != nil || ticket.ID != "r" || ticket.Sequence != 1 {
		t.Fatalf("RequestRun() = %+v, %v", ticket, err)
	}
	publish(t, bus, runEvents("other")...)
	all := runEvents("r")
	publish(t, bus, all[:2]...)
	go func() {
		if err := bus.Publish(context.WithoutCancel(t.Context()), all[2]); err != nil {
			t.Error(err)
		}
	}()
	result, err := c.AwaitRun(t.Context(), ticket)
	if err != nil || result.Completed == nil || result.Completed.RunID != "r" {
		t.Errorf("AwaitRun() = %+v, %v", result, err)
	}
	var seen []events.Type
	err = c.WatchRun(t.Context(), client.Ticket{ID: "r"}, func(e events.Event) bool { seen = append(seen, e.Type); return true })
	if diff := cmp.Diff([]events.Type{events.TypeRunWaiting, events.TypeRunStarted, events.TypeRunCompleted}, seen); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestInvalidRunsAndCancelsAreNotSent(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	bad := runRequest("f")
	bad.Run.Env = map[string]string{"A-B": "x"}
	_, runErr := c.RequestRun(t.Context(), bad)
	cancelErr := c.CancelRun(t.Context(), events.RunCancel{})
	for _, err := range []error{runErr, cancelErr} {
		if _, ok := errors.AsType[*events.DecodeError](err); !ok {
			t.Errorf("error = %v", err)
		}
	}
	if err := c.CancelRun(t.Context(), events.RunCancel{RunID: "r", Reason: "late"}); err != nil {
		t.Error(err)
	}
	var stored []string
	err := bus.Scan(t.Context(), events.RunTypes(), natsbus.Start{}, func(m events.Message) bool { stored = append(stored, m.Subject); return true })
	if diff := cmp.Diff([]string{"run.cancel"}, stored); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestRunsAreListedByWhatTheEventsTell(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	for _, id := range []string{"a", "b", "c", "d"} {
		if _, err := c.RequestRun(t.Context(), runRequest("f"), client.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, bus, runEvents("a")...)
	publish(t, bus, runEvents("b")[:2]...)
	publish(t, bus, runEvents("c")[:1]...)
	late := runEvents("a")[1]
	late.ID = "late"
	publish(t, bus, late)
	all, err := c.Runs(t.Context(), client.Query{Project: "demo"})
	var got []string
	for _, s := range all {
		got = append(got, fmt.Sprintf("%s %s %d %s", s.RunID, s.State, s.Attempt, s.RequestID))
	}
	want := []string{"a completed 1 q", "b running 1 q", "c waiting 0 q", "d queued 0 "}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if last, err := c.Runs(t.Context(), client.Query{Limit: 1}); err != nil || len(last) != 1 || last[0].RunID != "d" || last[0].Name != "mine" {
		t.Errorf("Runs() = %+v, %v", last, err)
	}
	if s, err := c.RunStatus(t.Context(), "c"); err != nil || s.Waiting == nil || s.Waiting.Why != "Because." {
		t.Errorf("RunStatus() = %+v, %v", s, err)
	}
	if _, err := c.RunStatus(t.Context(), "x"); !errors.Is(err, client.ErrUnknown) {
		t.Errorf("RunStatus() = %v", err)
	}
}

func TestOutputOfARunIsRead(t *testing.T) {
	t.Parallel()
	c, bus := setup(t)
	w := bus.RunLogs().Open(events.RunKey("r"), 1)
	fmt.Fprintln(w, "hello")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.RunLogs(t.Context(), "r", 1, true, &out); err != nil || out.String() != "hello\n" {
		t.Errorf("RunLogs() = %q, %v", out.String(), err)
	}
}

// exampleTrigger answers every run with its events.
func exampleTrigger(bus *natsbus.Bus) {
	ctx := context.Background()
	requests, err := bus.RunRequests(ctx)
	if err != nil {
		panic(err)
	}
	d, err := requests.Next(ctx)
	if err != nil {
		panic(err)
	}
	e, _ := events.Decode(d.Event())
	for _, answer := range runEvents(e.ID) {
		if answer.Type == events.TypeRunStarted {
			w := bus.RunLogs().Open(events.RunKey(e.ID), 1)
			fmt.Fprintln(w, "accuracy 0.9")
			_ = w.Close()
		}
		if err := bus.Publish(ctx, answer); err != nil {
			panic(err)
		}
	}
	_ = d.Ack(ctx)
}

func ExampleClient_RequestRun() {
	dir, err := os.MkdirTemp("", "kiln-example-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	nc, bus, stop, err := start(dir)
	if err != nil {
		panic(err)
	}
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go exampleTrigger(bus) // in place of a worker

	c, err := client.New(nc)
	if err != nil {
		panic(err)
	}
	ticket, err := c.RequestRun(ctx, events.RunRequest{
		Function: []byte(`{
			"kind": "job",
			"metadata": {"name": "trainer", "project": "demo"},
			"spec": {"command": "train.py", "build": {"base_image": "python:3.12-slim", "requirements": ["numpy"]}}
		}`),
		Run:       events.RunSpec{Parameters: map[string]json.RawMessage{"epochs": []byte("10")}},
		AutoBuild: new(events.Flag(true)), // build the image first if there is none
	})
	if err != nil {
		panic(err)
	}
	err = c.WatchRun(ctx, ticket, func(e events.Event) bool {
		fmt.Println(e.Type)
		if s, ok := e.Data.(*events.RunStarted); ok {
			_ = c.RunLogs(ctx, ticket.ID, s.Attempt, true, os.Stdout)
		}
		return true
	})
	if err != nil {
		panic(err)
	}
	result, err := c.AwaitRun(ctx, ticket)
	if err != nil {
		panic(err)
	}
	fmt.Println(result.Completed.State)
	// Output:
	// run.waiting
	// run.started
	// accuracy 0.9
	// run.completed
	// completed
}
