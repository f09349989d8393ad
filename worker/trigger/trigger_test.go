package trigger

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/schemas"
	"kiln/worker"
)

const digest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

// built is how the build of a request ends well.
func built(id string) events.Event {
	return events.Event{
		ID: events.EventID(id, events.TypeBuildCompleted, 0), Source: "/w", Type: events.TypeBuildCompleted, Time: time.Now().UTC(),
		Data: &events.BuildCompleted{
			RequestID: id, BuildID: strings.Repeat("a", 64), Function: events.Function{Project: "default", Name: "f", Tag: "latest"}, Outcome: events.OutcomeBuilt,
			Reason: "Because.", Image: "i", Digest: digest, ImageRef: "reg/i@" + digest, Base: events.Base{Ref: "b", Digest: digest}, Attempt: 1, Engine: "fake",
		},
	}
}

// request is a run.requested of a function with the given spec and the given rest.
func request(id, spec, rest string) events.Event {
	var r events.RunRequest
	doc := `{"function":{"kind":"job","metadata":{"name":"f"},"spec":` + spec + `}` + rest + `}`
	if err := json.Unmarshal([]byte(doc), &r); err != nil {
		panic(err)
	}
	return events.Event{ID: id, Source: "/me", Type: events.TypeRunRequested, Time: time.Now().UTC(), Data: &r}
}

const needsBuild = `{"build":{"base_image":"b","commands":["x"],"auto_build":true}}`

// check validates every event of triggers against its schema.
func (w *world) check() {
	w.t.Helper()
	for _, e := range w.of(events.RunTypes()...) {
		if e.Type.Asked() {
			continue
		}
		raw, err := json.Marshal(e.Data)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := schemas.Validate(string(e.Type), raw); err != nil {
			w.t.Errorf("%s: %v: %s", e.Type, err, raw)
		}
	}
}

// closed waits until nothing is to be done for any run.
func (w *world) closed() {
	w.t.Helper()
	w.await("all runs to be closed", func() bool { return len(w.runs.keys(openPrefix)) == 0 })
}

// types are those of the events about runs, in order.
func (w *world) types() []events.Type {
	var out []events.Type
	for _, e := range w.of(events.RunTypes()...) {
		out = append(out, e.Type)
	}
	return out
}

func TestRunWaitsForItsImageAndThenStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park.play = func(p run.Plan) script {
		if p.Image != "reg/i@"+digest || p.Attempt != 1 || p.RunID != events.RunKey("r") {
			t.Errorf("plan %+v", p)
		}
		return script{lines: []string{"hello"}, results: `{"accuracy":0.9}`}
	}
	m := w.publish(request("r", needsBuild, `,"run":{"name":"mine"}`))
	w.join(quick("t1"), newLink(1), nil)
	done, ok := w.terminal("r").Data.(*events.RunCompleted)
	if !ok || string(done.Results) != `{"accuracy":0.9}` || done.Outcome != events.OutcomeBuilt || done.Name != "mine" || done.Timings.Ready.IsZero() || done.Timings.Started.IsZero() {
		t.Errorf("ended with %+v", done)
	}
	<-m.acked
	w.closed()
	want := []events.Type{events.TypeRunRequested, events.TypeRunWaiting, events.TypeRunStarted, events.TypeRunCompleted}
	if diff := cmp.Diff(want, w.types()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if got := w.logs.of(events.RunKey("r") + " 1"); got != "hello\n-- end\n" || w.park.left() != 0 {
		t.Errorf("log %q, %d processes left", got, w.park.left())
	}
	w.check()
}

func TestBuildOfARunIsRequestedWhateverImageTheFunctionHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(request("r", `{"image":"old","build":{"requirements":["pandas"]}}`, `,"auto_build":true,"with_mlrun":false`))
	w.join(quick("t1"), newLink(1), nil)
	w.terminal("r")
	asked := w.of(events.TypeBuildRequested)
	if len(asked) != 1 || asked[0].ID != "run."+events.RunKey("r")+".1" {
		t.Fatalf("builds requested: %+v", asked)
	}
	if b, ok := asked[0].Data.(*events.BuildRequest); !ok || b.SkipDeployed || b.WithMLRun == nil {
		t.Errorf("asked for %+v", asked[0].Data)
	}
}

func TestWithoutAutoBuildTheFunctionsImageIsRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	images := make(chan string, 2)
	w.park.play = func(p run.Plan) script { images <- p.Image; return script{} }
	w.publish(request("r", `{"image":"reg/mine:1","build":{"commands":["x"],"auto_build":true}}`, `,"auto_build":"no"`))
	w.join(quick("t1"), newLink(1), nil)
	if done, ok := w.terminal("r").Data.(*events.RunCompleted); !ok || done.Outcome != "" || done.RequestID != "" {
		t.Errorf("ended with %+v", done)
	}
	if got := <-images; got != "reg/mine:1@"+digest || len(w.of(events.TypeBuildRequested)) != 0 {
		t.Errorf("ran %s", got)
	}
}

func TestImageOfABuildThatIsNotNeededIsPinned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.build = func(id string, _ *events.BuildRequest) *events.Event {
		e := built(id)
		e.Data = &events.BuildCompleted{RequestID: id, Function: events.Function{Project: "p", Name: "f", Tag: "t"}, Outcome: events.OutcomeNotNeeded, Reason: "Because.", Image: "reg/mine:1"}
		return &e
	}
	w.publish(request("r", `{"image":"reg/mine:1","build":{"auto_build":true}}`, ""))
	w.join(quick("t1"), newLink(1), nil)
	if done, ok := w.terminal("r").Data.(*events.RunCompleted); !ok || done.ImageRef != "reg/mine:1@"+digest || done.Outcome != events.OutcomeNotNeeded {
		t.Errorf("ended with %+v", done)
	}
	w.check()
}

func TestRunsThatCannotBeAreRefusedWithTheirCode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		event events.Event
		code  builder.Kind
	}{
		"no image":      {request("r", `{"build":{"commands":["x"]}}`, ""), KindImageRequired},
		"no image, no":  {request("r", needsBuild, `,"auto_build":false`), KindImageRequired},
		"bad handler":   {request("r", needsBuild, `,"run":{"handler":"refused"}`), builder.KindInvalidRequest},
		"bad request":   {request("r", needsBuild, `,"run":{"timeout":"soon"}`), builder.KindInvalidRequest},
		"failing build": {request("r", `{"build":{"base_image":"b","commands":["fails"],"auto_build":true}}`, ""), KindBuildFailed},
		"failing run":   {request("r", needsBuild, `,"run":{"name":"fails"}`), KindRunFailed},
		"slow run":      {request("r", needsBuild, `,"run":{"name":"slow","timeout":"20ms"}`), builder.KindTimeout},
		"broken runner": {request("r", needsBuild, `,"run":{"name":"breaks"}`), builder.KindUnavailable},
		"pull denied":   {request("r", needsBuild, `,"run":{"name":"denied"}`), builder.KindPullDenied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.build = failingBuilds
			w.park.play = badRuns
			w.publish(tc.event)
			w.join(quick("t1"), newLink(1), nil)
			failed, ok := w.terminal("r").Data.(*events.RunFailed)
			if !ok || failed.Error.Code != string(tc.code) || failed.Error.Hint == "" || failed.Error.Message == "" {
				t.Fatalf("ended with %+v", w.terminal("r").Data)
			}
			switch tc.code { //nolint:exhaustive // the others have nothing more to show
			case KindBuildFailed:
				if failed.BuildError == nil || failed.BuildError.Code != "command_failed" || !slices.Equal(failed.LogTail, []string{"of the build"}) {
					t.Errorf("%+v", failed)
				}
			case KindRunFailed:
				if failed.ExitCode == nil || *failed.ExitCode != 7 || !slices.Equal(failed.LogTail, []string{"oh no"}) {
					t.Errorf("%+v", failed)
				}
			case builder.KindUnavailable:
				if w.runs.record("r").Attempt != 5 || !strings.Contains(failed.Error.Message, "tried 5 times") {
					t.Errorf("%+v", failed)
				}
			}
			w.closed()
			w.check()
		})
	}
}

func failingBuilds(id string, r *events.BuildRequest) *events.Event {
	if !strings.Contains(string(r.Function), "fails") {
		return new(built(id))
	}
	return &events.Event{
		ID: events.EventID(id, events.TypeBuildFailed, 0), Source: "/w", Type: events.TypeBuildFailed, Time: time.Now().UTC(),
		Data: &events.BuildFailed{
			RequestID: id, Error: events.FailureCause{Code: "command_failed", Message: "m", Hint: "h"}, LogTail: []string{"of the build"},
		},
	}
}

func badRuns(p run.Plan) script {
	switch p.Name {
	case "fails":
		return script{lines: []string{"oh no"}, exit: 7}
	case "slow":
		return script{forever: true}
	case "breaks":
		return script{broken: builder.Errorf(builder.KindUnavailable, "pulling", "no registry")}
	case "breaks once":
		if p.Attempt == 1 {
			return script{broken: builder.Errorf(builder.KindUnavailable, "pulling", "no registry")}
		}
	case "denied":
		return script{broken: builder.Errorf(builder.KindPullDenied, "pulling", "no")}
	}
	return script{lines: []string{"hello"}}
}

func TestRepeatedAndForeignMessagesChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.join(quick("t1"), newLink(1), nil)
	w.publish(built("somebody-elses"))
	w.publish(built("run." + strings.Repeat("c", 64) + ".9"))
	w.publish(request("r", needsBuild, ""))
	w.terminal("r")
	// The stream's memory of ids is over.
	again := func(e events.Event) *message {
		w.mu.Lock()
		delete(w.ids, string(e.Type)+e.ID)
		w.mu.Unlock()
		return w.publish(e)
	}
	<-again(request("r", needsBuild, "")).acked
	<-again(built(buildRequest(events.RunKey("r"), 1))).acked
	// Under its id another request is a conflict, told under the message's own id.
	<-again(request("r", needsBuild, `,"run":{"name":"another"}`)).acked
	last := w.of(events.TypeRunFailed)
	if len(last) != 1 {
		t.Fatalf("%d runs failed", len(last))
	}
	if f, ok := last[0].Data.(*events.RunFailed); !ok || f.Error.Code != "conflict" || !strings.HasPrefix(f.RunID, "seq:RUN:") {
		t.Errorf("%+v", last[0].Data)
	}
	if w.park.count() != 1 || len(w.of(events.TypeRunCompleted)) != 1 {
		t.Errorf("%d starts", w.park.count())
	}
}

func TestRunsOverTheSlotsWaitInTheirOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	gate := make(chan struct{})
	var order []string
	w.park.play = func(p run.Plan) script {
		order = append(order, p.Name)
		return script{takes: 5 * time.Millisecond}
	}
	answers := make(chan string, 10)
	w.build = func(id string, _ *events.BuildRequest) *events.Event { answers <- id; <-gate; return nil }
	names := []string{"a", "b", "c", "d", "e"}
	for _, name := range names {
		w.publish(request(name, needsBuild, `,"run":{"name":"`+name+`"}`))
	}
	cfg := quick("t1")
	cfg.Slots = 1
	w.join(cfg, newLink(1), nil)
	var ids []string
	for range names {
		ids = append(ids, <-answers)
	}
	if w.park.count() != 0 {
		t.Error("a run started before its image was there")
	}
	close(gate)
	for _, id := range ids {
		w.publish(built(id))
	}
	for _, name := range names {
		w.terminal(name)
	}
	// The first takes the slot; the others follow as they were requested.
	rest := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == order[0] })
	if !slices.Equal(order[1:], rest) {
		t.Errorf("order %v", order)
	}
}

func TestSecretsReachTheProcessAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const secret = "s3cr3t-value"
	w.park.play = func(p run.Plan) script {
		if len(p.Secrets) != 1 || p.Secrets[0].Value != secret {
			t.Errorf("secrets %v", p.Secrets)
		}
		return script{lines: []string{"it is " + secret}, exit: 1, results: `{"x":"` + secret + `"}`}
	}
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), newLink(1), func(_ *Trigger, d *Deps) {
		if d != nil {
			d.Secrets = secretsOf{"TOKEN": secret}
		}
	})
	w.terminal("r")
	w.closed()
	if log := w.logs.of(events.RunKey("r") + " 1"); strings.Contains(log, secret) || !strings.Contains(log, "it is ***") {
		t.Errorf("log %q", log)
	}
	for _, stream := range []string{"RUN", "BUILD"} {
		for _, e := range w.stored[stream] {
			if strings.Contains(string(e.raw.Data), secret) {
				t.Errorf("%s shows the secret", e.Type)
			}
		}
	}
	if raw, _, _ := w.runs.Get(t.Context(), runPrefix+events.RunKey("r")); strings.Contains(string(raw), secret) {
		t.Error("the record shows the secret")
	}
}

type secretsOf map[string]string

func (s secretsOf) Secrets(context.Context, string) (map[string]string, error) { return s, nil }

func TestKindsAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	var codes []string
	for _, k := range Kinds() {
		codes = append(codes, string(k))
		if Hint(k) == "" {
			t.Errorf("%s has no hint", k)
		}
	}
	if diff := cmp.Diff(schemas.RunFailureCodes(), codes); diff != "" {
		t.Errorf("codes (-schema +kinds):\n%s", diff)
	}
}

func TestFaultyConfigurationReportsEveryFault(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Slots: -1, Lease: -1}, Deps{})
	if err == nil || !strings.Contains(err.Error(), "slots") || !strings.Contains(err.Error(), "lease") {
		t.Errorf("New() = %v", err)
	}
	if _, err := New(Config{}, Deps{}); err == nil || !strings.Contains(err.Error(), "runner") {
		t.Errorf("New() = %v", err)
	}
}

var _ worker.History = (*world)(nil)
