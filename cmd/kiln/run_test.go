package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/natsbus"
)

// startBus runs a provisioned server for commands of this process.
func startBus(t *testing.T) (url string, bus *natsbus.Bus) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if bus, err = natsbus.New(nc, natsbus.Topology{}); err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{}); err != nil {
		t.Fatal(err)
	}
	return s.ClientURL(), bus
}

// answerRuns is a trigger that lets every run end as the exit code says; -1: its build
// fails.
func answerRuns(t *testing.T, bus *natsbus.Bus, exit int) <-chan events.RunRequest {
	t.Helper()
	requests, err := bus.RunRequests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan events.RunRequest, 10)
	done := make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		for {
			d, err := requests.Next(ctx)
			if err != nil {
				return
			}
			e, _ := events.Decode(d.Event())
			if r, ok := e.Data.(*events.RunRequest); ok {
				seen <- *r
			}
			for _, answer := range runAnswers(bus, e.ID, exit) { //nolint:contextcheck // a log has its own
				if err := bus.Publish(context.WithoutCancel(ctx), answer); err != nil {
					t.Errorf("publish: %v", err)
				}
			}
			_ = d.Ack(ctx)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return seen
}

func runAnswers(bus *natsbus.Bus, id string, exit int) []events.Event {
	at, f := time.Now().UTC(), events.Function{Project: "demo", Name: "trainer", Tag: "latest"}
	ref := "r/i@sha256:" + strings.Repeat("b", 64)
	times := events.RunTimings{Requested: at, Ready: at, Started: at, Finished: at}
	event := func(typ events.Type, data any) events.Event {
		return events.Event{ID: events.EventID(id, typ, 1), Source: "/t", Type: typ, Time: at, Data: data}
	}
	if exit < 0 {
		cause := events.FailureCause{Code: "command_failed", Message: "exit code 2", Hint: "h"}
		return []events.Event{event(events.TypeRunFailed, &events.RunFailed{
			RunID: id, Function: f, State: events.RunStateError, Error: events.FailureCause{Code: "build_failed", Message: "m", Hint: "h"},
			BuildError: &cause, LogTail: []string{"no such package"}, Timings: times,
		})}
	}
	w := bus.RunLogs().Open(events.RunKey(id), 1)
	fmt.Fprintln(w, "accuracy 0.9")
	_ = w.Close()
	started := event(events.TypeRunStarted, &events.RunStarted{
		RunID: id, Function: f, Attempt: 1, Runner: "fake", Trigger: "t", ImageRef: ref, LogSubject: "run.log.x", Started: at,
	})
	if exit == 0 {
		return []events.Event{started, event(events.TypeRunCompleted, &events.RunCompleted{
			RunID: id, Function: f, State: events.RunStateCompleted, Attempt: 1, Runner: "fake", ImageRef: ref, Timings: times,
		})}
	}
	return []events.Event{started, event(events.TypeRunFailed, &events.RunFailed{
		RunID: id, Function: f, State: events.RunStateError, Error: events.FailureCause{Code: "run_failed", Message: "m", Hint: "h"},
		ExitCode: &exit, Attempt: 1, Runner: "fake", ImageRef: ref, Timings: times,
	})}
}

func TestRunPrintsTheOutputAndEndsAsTheProcessDid(t *testing.T) {
	t.Parallel()
	for exit, want := range map[int]struct {
		code     int
		out, err string
	}{
		0:  {cli.ExitOK, "accuracy 0.9\n", "completed"},
		7:  {cli.ExitFailed, "accuracy 0.9\n", "failed  run_failed"},
		-1: {cli.ExitFailed, "", "no such package"},
	} {
		t.Run(strconv.Itoa(exit), func(t *testing.T) {
			t.Parallel()
			url, bus := startBus(t)
			answerRuns(t, bus, exit)
			out, errs, code := execute(t, functionYAML, "run", "-f", "-", "--nats-url", url, "--follow")
			if code != want.code || out != want.out || !strings.Contains(errs, want.err) {
				t.Errorf("exit code %d, out %q, err %s", code, out, errs)
			}
			out, errs, code = execute(t, functionYAML, "run", "-f", "-", "--nats-url", url, "-o", "json")
			var data struct{ State string }
			if err := json.Unmarshal([]byte(out), &data); err != nil || code != want.code || data.State == "" {
				t.Errorf("exit code %d, out %q, err %s", code, out, errs)
			}
		})
	}
}

func TestFlagsOfARunReachTheRequest(t *testing.T) {
	t.Parallel()
	url, bus := startBus(t)
	seen := answerRuns(t, bus, 0)
	out, errs, code := execute(t, functionYAML, "run", "-f", "-", "--nats-url", url, "--id", "mine", "--detach", "--auto-build", "--name", "n", "--handler", "h",
		"--param", "a=1", "-p", "b=[1,{\"c\":null}]", "-p", "c=x=y;z,w", "-p", "d=", "--arg=--fast,1", "--arg", "two words", "--env", "LEVEL=a;b", "--input", "x=s3://b/k",
		"--label", "team=a", "--timeout", "90m", "--workdir", "/w", "--no-cache", "--no-with-mlrun")
	if code != cli.ExitOK || out != "mine\n" {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	got := <-seen
	want := events.RunSpec{
		Name: "n", Handler: "h", Parameters: map[string]json.RawMessage{"a": []byte("1"), "b": []byte(`[1,{"c":null}]`), "c": []byte(`"x=y;z,w"`), "d": []byte(`""`)},
		Args: []string{"--fast,1", "two words"}, Env: map[string]string{"LEVEL": "a;b"}, Inputs: map[string]string{"x": "s3://b/k"},
		Labels: map[string]string{"team": "a"}, Timeout: "1h30m0s", Workdir: "/w",
	}
	if diff := cmp.Diff(want, got.Run); diff != "" {
		t.Errorf("run (-want +got):\n%s", diff)
	}
	if got.AutoBuild == nil || !bool(*got.AutoBuild) || got.WithMLRun == nil || bool(*got.WithMLRun) || !got.Options.NoCache {
		t.Errorf("request %+v", got)
	}
}

func TestCommandsKnowRuns(t *testing.T) {
	t.Parallel()
	url, bus := startBus(t)
	answerRuns(t, bus, 7)
	execute(t, functionYAML, "run", "-f", "-", "--nats-url", url, "--id", "mine")
	for _, tc := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"runs"}, cli.ExitOK, "exit code 7"},
		{[]string{"runs", "-o", "json"}, cli.ExitOK, `"run_id": "mine"`},
		{[]string{"status", "mine"}, cli.ExitOK, "failed  run_failed"},
		{[]string{"status", "mine", "-o", "json"}, cli.ExitOK, `"state": "failed"`},
		{[]string{"logs", "mine", "-f"}, cli.ExitOK, "accuracy 0.9"},
		{[]string{"cancel", "mine"}, cli.ExitFailed, "too late"},
		{[]string{"status", "yours"}, cli.ExitFailed, "kiln runs"},
	} {
		out, errs, code := execute(t, "", append(tc.args, "--nats-url", url)...)
		if code != tc.code || !strings.Contains(out+errs, tc.text) {
			t.Errorf("%v: exit code %d, want %d and %q in: %s%s", tc.args, code, tc.code, tc.text, out, errs)
		}
	}
}
