package events_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"kiln/events"
	"kiln/schemas"
)

const function = `{"kind":"job","metadata":{"name":"My_Func","project":"demo"},"spec":{"build":{"base_image":"a","commands":["ls"]}}}`

func bare(data string) events.Message {
	return events.Message{Subject: "build.requested", Data: []byte(data), FallbackID: "seq:BUILD:42", Time: time.Unix(1000, 0).UTC()}
}

func with(m events.Message, headers ...string) events.Message {
	m.Header = map[string][]string{}
	for i := 0; i < len(headers); i += 2 {
		m.Header[headers[i]] = []string{headers[i+1]}
	}
	return m
}

func structured(attributes string) events.Message {
	return bare(`{"specversion":"1.0","id":"e1","source":"/me","type":"dev.kiln.build.requested.v1",` + attributes + `"data":{"function":` + function + `}}`)
}

func TestEveryModeGivesTheSameRequest(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString([]byte(`{"function":` + function + `}`))
	for name, tc := range map[string]struct {
		message events.Message
		id      string
	}{
		"bare request":             {bare(`{"function":` + function + `}`), "seq:BUILD:42"},
		"bare function":            {bare(function), "seq:BUILD:42"},
		"bare with message id":     {with(bare(function), "Nats-Msg-Id", "mine"), "mine"},
		"structured":               {structured(""), "e1"},
		"structured, short type":   {bare(`{"specversion":"1.0","id":"e1","source":"/me","type":"build.requested","data":{"function":` + function + `}}`), "e1"},
		"structured, base64":       {bare(`{"specversion":"1.0","id":"e1","source":"/me","type":"build.requested","data_base64":"` + encoded + `"}`), "e1"},
		"structured, unknown attr": {structured(`"myextension":"x",`), "e1"},
		"binary": {with(bare(`{"function":`+function+`}`), "ce-specversion", "1.0", "ce-id", "e1", "ce-source", "/me",
			"ce-type", "dev.kiln.build.requested.v1", "content-type", "application/json"), "e1"},
		"binary, other case": {with(bare(`{"function":`+function+`}`), "Ce-Specversion", "1.0", "Ce-Id", "e1", "Ce-Source", "/me",
			"Ce-Type", "build.requested", "Nats-Msg-Id", "other"), "e1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := events.Decode(tc.message)
			if err != nil {
				t.Fatal(err)
			}
			r, ok := e.Data.(*events.BuildRequest)
			if !ok || string(r.Function) != function || e.ID != tc.id {
				t.Errorf("Decode() = %+v with %s, want id %s", e, r.Function, tc.id)
			}
		})
	}
}

func TestCancelIsReadInEveryMode(t *testing.T) {
	t.Parallel()
	build := strings.Repeat("a", 64)
	cancel := func(data string) events.Message {
		m := bare(data)
		m.Subject = "acme.build.cancel"
		return m
	}
	const envelope = `{"specversion":"1.0","id":"e1","source":"/me","type":"dev.kiln.build.cancel.v1","data":`
	for name, tc := range map[string]struct {
		message events.Message
		id      string
		want    events.BuildCancel
	}{
		"bare":                 {cancel(`{"request_id":"seq:BUILD:7"}`), "seq:BUILD:42", events.BuildCancel{RequestID: "seq:BUILD:7"}},
		"bare with message id": {with(cancel(`{"build_id":"`+build+`","request_id":null}`), "Nats-Msg-Id", "c"), "c", events.BuildCancel{BuildID: build}},
		"structured":           {cancel(envelope + `{"request_id":"r","reason":"late"}}`), "e1", events.BuildCancel{RequestID: "r", Reason: "late"}},
		"binary": {
			with(cancel(`{"request_id":"r"}`), "ce-specversion", "1.0", "ce-id", "e1", "ce-source", "/me", "ce-type", "build.cancel"),
			"e1",
			events.BuildCancel{RequestID: "r"},
		},
	} {
		e, err := events.Decode(tc.message)
		got, ok := e.Data.(*events.BuildCancel)
		if err != nil || !ok || *got != tc.want || e.ID != tc.id || e.Type != events.TypeBuildCancel {
			t.Errorf("%s: Decode() = %+v with %+v, %v", name, e, got, err)
		}
	}
	for name, m := range map[string]events.Message{
		"both ids":       cancel(`{"request_id":"r","build_id":"` + build + `"}`),
		"no id":          cancel(`{"reason":"x"}`),
		"null":           cancel(`null`),
		"short build id": cancel(`{"build_id":"aaaa"}`),
		"a function":     cancel(function),
		"type of others": cancel(strings.NewReplacer("cancel", "canceled", "e1", "seq:BUILD:42").Replace(envelope) + `{"request_id":"r"}}`),
		"reserved id":    with(cancel(`{"request_id":"r"}`), "Nats-Msg-Id", "seq:BUILD:1"),
	} {
		e, err := events.Decode(m)
		if _, ok := errors.AsType[*events.DecodeError](err); !ok || e.Type != events.TypeBuildCancel || e.ID != "seq:BUILD:42" || e.Data != nil {
			t.Errorf("%s: Decode() = %+v, %v", name, e, err)
		}
	}
}

func TestOnlyRequestersMayLeaveOutTheEnvelope(t *testing.T) {
	t.Parallel()
	for _, e := range emitted() {
		data, err := json.Marshal(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = events.Decode(events.Message{Subject: string(e.Type), Data: data, FallbackID: "seq:BUILD:1"})
		if (err == nil) != e.Type.Asked() {
			t.Errorf("a bare %s: %v", e.Type, err)
		}
	}
}

func TestEventsOfTheLongestRequestIDAreRead(t *testing.T) {
	t.Parallel()
	for _, e := range emitted() {
		if e.ID = events.EventID(strings.Repeat("x", 200), e.Type, 1000); e.Type.Asked() {
			continue
		}
		m, err := events.Encode(e, events.Subjects{})
		if err != nil {
			t.Fatal(err)
		}
		if back, err := events.Decode(m); err != nil || back.ID != e.ID {
			t.Errorf("%s: Decode() = id %s, %v", e.Type, back.ID, err)
		}
	}
}

func TestOneFactHasOneID(t *testing.T) {
	t.Parallel()
	for typ, want := range map[events.Type]string{
		events.TypeBuildStarted: "r.build.started.2", events.TypeBuildQueued: "r.build.queued", events.TypeBuildDead: "r.build.dead",
		events.TypeBuildCompleted: "r.build.completed", events.TypeBuildFailed: "r.build.failed", events.TypeBuildCanceled: "r.build.canceled",
		events.TypeRunStarted: "r.run.started.2", events.TypeRunWaiting: "r.run.waiting", events.TypeRunCompleted: "r.run.completed",
	} {
		if got := events.EventID("r", typ, 2); got != want {
			t.Errorf("EventID(%s) = %s, want %s", typ, got, want)
		}
	}
}

func TestWhatIsNotAValidEventIsRefusedAndKeepsAnID(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 200) + strings.Repeat("]", 200)
	for name, tc := range map[string]struct {
		message events.Message
		id      string
		text    string
		notJSON bool
	}{
		"empty":                   {bare(""), "seq:BUILD:42", "not JSON", true},
		"not JSON":                {bare("make me an image"), "seq:BUILD:42", "not JSON", true},
		"not JSON, named":         {with(bare("make me an image"), "Nats-Msg-Id", "mine"), "mine", "not JSON", true},
		"truncated":               {bare(`{"function":`), "seq:BUILD:42", "not JSON", true},
		"two documents":           {bare(function + function), "seq:BUILD:42", "after its end", true},
		"key twice":               {bare(`{"function":{},"function":{}}`), "seq:BUILD:42", "twice", true},
		"too deep":                {bare(`{"function":` + deep + `}`), "seq:BUILD:42", "nested", true},
		"array":                   {bare(`[1]`), "seq:BUILD:42", "object", false},
		"too large":               {bare(`"` + strings.Repeat("x", 2<<20) + `"`), "seq:BUILD:42", "1 MiB", false},
		"too large, named":        {with(bare(strings.Repeat("x", 2<<20)), "Nats-Msg-Id", "big"), "big", "1 MiB", false},
		"unknown version":         {bare(strings.Replace(string(structured("").Data), `"1.0"`, `"2.0"`, 1)), "e1", "specversion", false},
		"wrong type":              {bare(strings.Replace(string(structured("").Data), "requested", "completed", 1)), "e1", "type", false},
		"no data":                 {bare(`{"specversion":"1.0","id":"e1","source":"/me","type":"build.requested"}`), "e1", "no data", false},
		"not JSON inside":         {structured(`"datacontenttype":"text/xml",`), "e1", "text/xml", false},
		"bad time":                {structured(`"time":"yesterday",`), "e1", "time", false},
		"binary without a source": {with(bare(function), "ce-specversion", "1.0", "ce-id", "e1"), "e1", "source", false},
		"reserved id":             {with(bare(function), "Nats-Msg-Id", "seq:BUILD:1"), "seq:BUILD:42", "reserved", false},
		"id with a newline":       {with(bare(function), "Nats-Msg-Id", "a\nb"), "seq:BUILD:42", "printable", false},
		"id too long":             {with(bare(function), "Nats-Msg-Id", strings.Repeat("a", 201)), "seq:BUILD:42", "printable", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := events.Decode(tc.message)
			broken, ok := errors.AsType[*events.DecodeError](err)
			if !ok {
				t.Fatalf("Decode() error = %v, want a *DecodeError", err)
			}
			if e.ID != tc.id || broken.NotJSON != tc.notJSON || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("id %q, not JSON %v, error %q; want %q, %v, …%s…", e.ID, broken.NotJSON, err, tc.id, tc.notJSON, tc.text)
			}
			if _, ok := e.Data.(*events.BuildRequest); !ok {
				t.Errorf("data = %T, want a partial request", e.Data)
			}
		})
	}
}

func TestThreeViolationsComeWithThreePaths(t *testing.T) {
	t.Parallel()
	e, err := events.Decode(bare(`{"function":{"kind":"job","metadata":{"name":"x","project":"p"},"spec":{"build":{"commands":"ls","extra":7}}},"force_build":"maybe"}`))
	broken, ok := errors.AsType[*events.DecodeError](err)
	if !ok {
		t.Fatalf("error = %v", err)
	}
	var paths []string
	for _, v := range broken.Violations {
		paths = append(paths, v.Path)
	}
	if diff := cmp.Diff([]string{"/force_build", "/function/spec/build/commands", "/function/spec/build/extra"}, paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	r, _ := e.Data.(*events.BuildRequest)
	if got := events.Identify(r.Function); got != (events.Function{Project: "p", Name: "x", Tag: "latest"}) {
		t.Errorf("Identify() = %+v", got)
	}
}

func TestTraceContextTravelsAndNonsenseDoesNot(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, m := range map[string]events.Message{
		"header":    with(bare(function), "traceparent", parent),
		"extension": structured(`"traceparent":"` + parent + `",`),
	} {
		if e, err := events.Decode(m); err != nil || e.TraceParent != parent {
			t.Errorf("%s: traceparent %q, %v", name, e.TraceParent, err)
		}
	}
	if e, err := events.Decode(with(bare(function), "traceparent", "evil\r\n")); err != nil || e.TraceParent != "" {
		t.Errorf("nonsense traceparent %q, %v", e.TraceParent, err)
	}
}

// emitted holds events of each type that workers and clients send.
func emitted() []events.Event {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	id, digest := strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	f := events.Function{Project: "demo", Name: "trainer", Tag: "latest"}
	base := events.Base{Ref: "python:3.12", Digest: digest}
	times := events.Timings{Requested: at, Started: at, Finished: at, BuildMS: 7}
	event := func(typ events.Type, data any) events.Event {
		return events.Event{ID: events.EventID("r", typ, 1), Source: "/kiln/worker/w", Type: typ, Time: at, Data: data}
	}
	return []events.Event{
		event(events.TypeBuildStarted, &events.BuildStarted{
			RequestID: "r", BuildID: id, Function: f, Image: "i", Base: base, Attempt: 1, Engine: "sandbox", Worker: "w", LogSubject: "build.log." + id, Started: at,
		}),
		event(events.TypeBuildCompleted, &events.BuildCompleted{
			RequestID: "r", BuildID: id, Function: f, Outcome: events.OutcomeBuilt, Reason: "Because.", Image: "i", Digest: digest,
			ImageRef: "r/i@" + digest, Base: base, Attempt: 1, Engine: "sandbox", Timings: times,
		}),
		event(events.TypeBuildCompleted, &events.BuildCompleted{
			RequestID: "r", Function: f, Outcome: events.OutcomeNotNeeded, Reason: "Because.", Image: "i", Timings: times,
		}),
		event(events.TypeBuildQueued, &events.BuildQueued{
			RequestID: "r", BuildID: id, Function: f, Image: "i", Priority: events.PriorityAuto, Position: 3, Reason: "Two go first.", EstimatedStart: at, Queued: at,
		}),
		event(events.TypeBuildQueued, &events.BuildQueued{
			RequestID: "r", BuildID: id, Function: f, Image: "i", Priority: events.PriorityBulk, Reason: "It shares a build.", Queued: at,
		}),
		event(events.TypeBuildCanceled, &events.BuildCanceled{RequestID: "r", Reason: "Canceled on request.", Timings: times}),
		event(events.TypeBuildCanceled, &events.BuildCanceled{
			RequestID: "r", BuildID: id, Function: f, Image: "i", Reason: "A newer request replaces it.", SupersededBy: "r2", Timings: times,
		}),
		event(events.TypeBuildDead, &events.BuildDead{
			RequestID: "r", Function: f, Error: events.FailureCause{Code: "unavailable", Message: "m", Hint: "h", Retryable: true},
			Causes: []string{"a", "b"}, Attempts: 2, Sequence: 7, Failed: at, Request: events.BuildRequest{
				Function: []byte(function), Options: events.Options{Priority: events.PriorityInteractive, Supersede: true},
			},
		}),
		event(events.TypeBuildCancel, &events.BuildCancel{RequestID: "r", Reason: "Not wanted."}),
		event(events.TypeBuildFailed, &events.BuildFailed{
			RequestID: "r", Error: events.FailureCause{Code: "queue_full", Message: "m", Hint: "h", Retryable: true}, Timings: times,
		}),
		event(events.TypeBuildFailed, &events.BuildFailed{
			RequestID: "r", Error: events.FailureCause{Code: "invalid_request", Message: "m", Hint: "h"}, Timings: times,
		}),
	}
}

func TestEmittedEventsAreValidForSchemaAndCloudEventsSDK(t *testing.T) {
	t.Parallel()
	for _, e := range emitted() {
		m, err := events.Encode(e, events.Subjects{Prefix: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != "acme."+string(e.Type) || m.Header["Nats-Msg-Id"][0] != e.ID {
			t.Errorf("message on %s with %v", m.Subject, m.Header)
		}
		if err := schemas.Validate("cloudevent", m.Data); err != nil {
			t.Errorf("%s: envelope: %v", e.Type, err)
		}
		var sdk cloudevents.Event
		if err := json.Unmarshal(m.Data, &sdk); err != nil {
			t.Fatal(err)
		}
		if err := sdk.Validate(); err != nil {
			t.Errorf("%s: the SDK says %v", e.Type, err)
		}
		if sdk.ID() != e.ID || sdk.Type() != e.Type.CloudEvent() {
			t.Errorf("the SDK reads id %s, type %s", sdk.ID(), sdk.Type())
		}
		if err := schemas.Validate(string(e.Type), sdk.Data()); err != nil {
			t.Errorf("%s: data: %v", e.Type, err)
		}
		back, err := events.Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Errorf("%s does not come back the same (-want +got):\n%s", e.Type, diff)
		}
		again, err := events.Encode(back, events.Subjects{Prefix: "acme"})
		if err != nil || string(again.Data) != string(m.Data) {
			t.Errorf("%s: encoding again gives other bytes (%v)", e.Type, err)
		}
	}
}

func TestSubjectsKeepKilnsApart(t *testing.T) {
	t.Parallel()
	ours := events.Subjects{Prefix: "acme"}
	for subject, want := range map[string]events.Type{
		"acme.build.cancel": events.TypeBuildCancel, "acme.build.canceled": events.TypeBuildCanceled, "acme.build.dead": events.TypeBuildDead,
		"acme.build.failed": events.TypeBuildFailed, "build.failed": "", "acme.build.log.x": "", "other.build.failed": "",
	} {
		if got, ok := ours.Type(subject); got != want || ok != (want != "") {
			t.Errorf("Type(%s) = %q, %v", subject, got, ok)
		}
	}
	if got := (events.Subjects{}).Log("x") + " " + ours.AllLogs() + " " + ours.AllBuilds(); got != "build.log.x acme.build.log.* acme.build.*" {
		t.Errorf("subjects = %s", got)
	}
}

func TestFlagTakesWhatMLRunTakes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{`true`: true, `"yes"`: true, `"ON"`: true, `"1"`: true, `false`: false, `"No"`: false, `"off"`: false} {
		var f events.Flag
		if err := json.Unmarshal([]byte(text), &f); err != nil || bool(f) != want {
			t.Errorf("%s = %v, %v", text, f, err)
		}
	}
	for _, text := range []string{`"maybe"`, `1`, `null`, `[]`} {
		var f events.Flag
		if err := f.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s was taken for a flag", text)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []events.Message{bare(function), structured(""), structured(`"time":"x",`), bare("{}"), bare("[")} {
		f.Add(m.Subject, m.Data, "", "")
	}
	f.Add("build.requested", []byte(function), "id", "1.0")
	f.Add("build.cancel", []byte(`{"request_id":"r"}`), "", "")
	f.Add("acme.build.cancel", []byte(`{"build_id":"`+strings.Repeat("a", 64)+`","reason":"x"}`), "c", "1.0")
	f.Add("run.requested", []byte(`{"function":`+function+`,"run":{"parameters":{"a":null}}}`), "r", "")
	f.Add("run.cancel", []byte(`{"run_id":"r"}`), "", "")
	for _, e := range append(emitted(), emittedRuns()...) {
		m, err := events.Encode(e, events.Subjects{})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Subject, m.Data, e.ID, "")
	}
	f.Fuzz(func(t *testing.T, subject string, data []byte, id, version string) {
		m := with(events.Message{Subject: subject, Data: data, FallbackID: "seq:BUILD:1"}, "Nats-Msg-Id", id, "ce-id", id, "ce-specversion", version)
		e, err := events.Decode(m)
		for _, r := range e.ID {
			if r < '!' || r > '~' {
				t.Fatalf("id %q is not printable", e.ID)
			}
		}
		if e.ID == "" || len(e.ID) > 200 {
			t.Fatalf("id %q", e.ID)
		}
		if err != nil {
			return
		}
		again, err := events.Encode(e, events.Subjects{})
		if err != nil {
			t.Fatal(err)
		}
		// An id that was derived from the stream is not one that a client may use.
		if strings.HasPrefix(e.ID, "seq:") {
			return
		}
		if e.Source == "" {
			return
		}
		if _, err := events.Decode(again); err != nil {
			t.Fatalf("a valid request becomes invalid: %v\n%s", err, again.Data)
		}
	})
}

func ExampleDecode() {
	e, err := events.Decode(events.Message{
		Subject: "build.requested", FallbackID: "seq:BUILD:7",
		Data: []byte(`{"kind": "job", "metadata": {"name": "trainer"}, "spec": {"build": {"commands": ["pip list"]}}}`),
	})
	request, _ := e.Data.(*events.BuildRequest)
	fmt.Println(e.ID, events.Identify(request.Function), err)
	// Output: seq:BUILD:7 {default trainer latest} <nil>
}
