package events_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/events"
	"kiln/schemas"
)

// emittedRuns holds events of each type about runs that triggers and clients send.
func emittedRuns() []events.Event {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	key := strings.Repeat("a", 64)
	ref := "r/i@sha256:" + strings.Repeat("b", 64)
	f := events.Function{Project: "demo", Name: "trainer", Tag: "latest"}
	times := events.RunTimings{Requested: at, Ready: at, Started: at, Finished: at}
	cause := events.FailureCause{Code: "build_failed", Message: "m", Hint: "h"}
	event := func(typ events.Type, data any) events.Event {
		return events.Event{ID: events.EventID("r", typ, 1), Source: "/kiln/trigger/t", Type: typ, Time: at, Data: data}
	}
	return []events.Event{
		event(events.TypeRunRequested, &events.RunRequest{
			Function: []byte(function), AutoBuild: new(events.Flag(true)),
			Run: events.RunSpec{
				Handler: "h", Parameters: map[string]json.RawMessage{"a": []byte(`1`), "b": []byte(`{"c":[null]}`)},
				Args: []string{"--x", "y z"}, Resources: events.RunResources{Memory: 1 << 30, CPU: .5, GPUs: 1}, Timeout: "1h",
			},
		}),
		event(events.TypeRunWaiting, &events.RunWaiting{RunID: "r", Function: f, Why: "Because.", RequestID: "run." + key + ".1", Waiting: at}),
		event(events.TypeRunStarted, &events.RunStarted{
			RunID: "r", Function: f, Name: "n", Attempt: 1, Runner: "sandbox", Trigger: "t", ImageRef: ref, LogSubject: "run.log." + key, Started: at,
		}),
		event(events.TypeRunCompleted, &events.RunCompleted{
			RunID: "r", Function: f, State: events.RunStateCompleted, Attempt: 1, Runner: "sandbox", ImageRef: ref,
			RequestID: "q", BuildID: key, Outcome: events.OutcomeReused, Results: []byte(`{"accuracy":0.9}`), Timings: times,
		}),
		event(events.TypeRunFailed, &events.RunFailed{
			RunID: "r", Function: f, State: events.RunStateError, Error: cause, BuildError: &events.FailureCause{Code: "command_failed", Message: "m", Hint: "h"},
			LogTail: []string{"x"}, Timings: events.RunTimings{Requested: at, Finished: at},
		}),
		event(events.TypeRunFailed, &events.RunFailed{
			RunID: "r", State: events.RunStateError, Error: events.FailureCause{Code: "run_failed", Message: "m", Hint: "h"}, ExitCode: new(137),
			Attempt: 2, Runner: "kube", ImageRef: ref, Timings: times,
		}),
		event(events.TypeRunCanceled, &events.RunCanceled{RunID: "r", Reason: "Not wanted.", Timings: events.RunTimings{Requested: at, Finished: at}}),
		event(events.TypeRunCancel, &events.RunCancel{RunID: "r", Reason: "Not wanted."}),
	}
}

func TestEventsOfRunsAreValidAndComeBackTheSame(t *testing.T) {
	t.Parallel()
	for _, e := range emittedRuns() {
		m, err := events.Encode(e, events.Subjects{Prefix: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{false: "r"}[e.Type.Asked()]; events.RunOf(e) != want {
			t.Errorf("%s is about run %q", e.Type, events.RunOf(e))
		}
		if err := schemas.Validate("cloudevent", m.Data); err != nil {
			t.Errorf("%s: envelope: %v", e.Type, err)
		}
		back, err := events.Decode(m)
		if err != nil {
			t.Fatalf("%s: %v", e.Type, err)
		}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Errorf("%s does not come back the same (-want +got):\n%s", e.Type, diff)
		}
		data, err := json.Marshal(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = events.Decode(events.Message{Subject: string(e.Type), Data: data, FallbackID: "seq:RUN:1"})
		if (err == nil) != e.Type.Asked() {
			t.Errorf("a bare %s: %v", e.Type, err)
		}
	}
}

func TestRunsAreRequestedInEveryMode(t *testing.T) {
	t.Parallel()
	message := func(data string) events.Message {
		return events.Message{Subject: "acme.run.requested", Data: []byte(data), FallbackID: "seq:RUN:42"}
	}
	const request = `{"function":` + function + `,"run":{"handler":"h"},"auto_build":"yes"}`
	for name, tc := range map[string]struct {
		message events.Message
		id      string
	}{
		"bare request":         {message(request), "seq:RUN:42"},
		"bare function":        {message(function), "seq:RUN:42"},
		"bare with message id": {with(message(request), "Nats-Msg-Id", "mine"), "mine"},
		"structured":           {message(`{"specversion":"1.0","id":"e1","source":"/me","type":"run.requested","data":` + request + `}`), "e1"},
		"binary":               {with(message(request), "ce-specversion", "1.0", "ce-id", "e1", "ce-source", "/me", "ce-type", "dev.kiln.run.requested.v1"), "e1"},
	} {
		e, err := events.Decode(tc.message)
		r, ok := e.Data.(*events.RunRequest)
		if err != nil || !ok || string(r.Function) != function || e.ID != tc.id || e.Type != events.TypeRunRequested {
			t.Errorf("%s: Decode() = %+v, %v", name, e, err)
		}
		if ok && name != "bare function" && (r.Run.Handler != "h" || r.AutoBuild == nil || !bool(*r.AutoBuild)) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestRunThatIsNotValidKeepsItsFunction(t *testing.T) {
	t.Parallel()
	e, err := events.Decode(events.Message{
		Subject: "run.requested", FallbackID: "seq:RUN:42", Data: []byte(`{"function":` + function + `,"run":{"env":{"A-B":"x"}}}`),
	})
	broken, ok := errors.AsType[*events.DecodeError](err)
	if !ok || len(broken.Violations) != 1 || broken.Violations[0].Path != "/run/env" {
		t.Fatalf("Decode() error = %v", err)
	}
	r, ok := e.Data.(*events.RunRequest)
	if !ok || events.Identify(r.Function).Name != "my-func" {
		t.Errorf("data = %+v", e.Data)
	}
}

func TestBuildOfARunIsDecidedByWhatGoesIntoIt(t *testing.T) {
	t.Parallel()
	r := events.RunRequest{
		Function: []byte(function), WithMLRun: new(events.Flag(true)), ForceBuild: true, MLRunVersionSpecifier: "mlrun==1",
		BuilderEnv: map[string]string{"A": "b"}, Options: events.Options{NoCache: true},
	}
	want := events.BuildRequest{
		Function: []byte(function), WithMLRun: new(events.Flag(true)), ForceBuild: true, MLRunVersionSpecifier: "mlrun==1",
		BuilderEnv: map[string]string{"A": "b"}, Options: events.Options{NoCache: true},
	}
	if diff := cmp.Diff(want, r.Build()); diff != "" {
		t.Errorf("Build() (-want +got):\n%s", diff)
	}
}
