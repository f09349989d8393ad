package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
)

// task is one delivery of a request and what is known of it so far.
type task struct {
	id      string
	content string
	event   events.Event
	msg     events.Message
	// request is nil when the message could not be decoded; fault says why.
	request *events.BuildRequest
	fault   error
	subject events.Function
	started time.Time
	log     zerolog.Logger
	source  string

	// Known once planned.
	image    string
	plan     builder.Plan
	engine   string
	attempt  int
	buildMS  int64
	redactor *builder.Redactor
	tail     tail
}

func (w *Worker) newTask(msg Message) *task {
	raw := msg.Event()
	e, err := events.Decode(raw)
	t := &task{id: e.ID, event: e, msg: raw, started: time.Now().UTC(), source: "/kiln/worker/" + w.cfg.Name}
	t.request, _ = e.Data.(*events.BuildRequest)
	content := raw.Data
	if t.request != nil {
		t.subject = events.Identify(t.request.Function)
	}
	if err != nil {
		t.fault = &builder.Error{Kind: builder.KindInvalidRequest, Op: "reading the request", Err: err}
	} else if canonical, err := json.Marshal(t.request); err == nil {
		content = canonical
	}
	sum := sha256.Sum256(content)
	t.content = hex.EncodeToString(sum[:])
	t.redactor = builder.NewRedactor()
	t.log = w.deps.Log.With().Str("request_id", t.id).Logger()
	if raw.Time.IsZero() {
		t.msg.Time = t.started
	}
	w.deps.Metrics.queueTime.Observe(max(0, t.started.Sub(t.msg.Time).Seconds()))
	return t
}

// conflict makes t the task of telling that its id is taken by a different request.
// It is told under the message's own id, since the other request owns this one.
func (t *task) conflict() {
	t.fault = builder.Errorf(builder.KindConflict, "reading the request",
		"request id %q was used before by a different request", t.id)
	t.id = t.msg.FallbackID
	t.log = t.log.With().Str("request_id", t.id).Logger()
}

// Input translates a wire request for the function rules.
func Input(requestID string, r *events.BuildRequest) function.Input {
	in := function.Input{
		RequestID: requestID, Function: r.Function, SkipDeployed: r.SkipDeployed, ForceBuild: r.ForceBuild,
		MLRunVersionSpecifier: r.MLRunVersionSpecifier, BuilderEnv: r.BuilderEnv,
		Timeout: r.Options.Timeout, Platform: r.Options.Platform, NoCache: r.Options.NoCache,
		LayerOrder: r.Options.LayerOrder, Secrets: r.Options.Secrets,
		ClientVersion: r.Options.ClientVersion, ClientPythonVersion: r.Options.ClientPythonVersion,
	}
	if r.WithMLRun != nil {
		in.WithMLRun = new(bool(*r.WithMLRun))
	}
	return in
}

// planned notes what the request resolved to.
func (t *task) planned(plan builder.Plan, engine string, redactor *builder.Redactor) {
	t.plan, t.engine, t.redactor = plan, engine, redactor

	t.log = t.log.With().Str("build_id", plan.BuildID).Logger()
}

func (t *task) base() events.Base {
	return events.Base{Ref: t.plan.Base.Ref, Digest: t.plan.Base.Digest}
}

// clean bounds and redacts text that leaves the worker.
func (t *task) clean(text string) string { return clip(t.redactor.Text(text), 8<<10) }

func (t *task) timings(finished time.Time) events.Timings {
	return events.Timings{
		Requested: t.msg.Time.UTC(), Started: t.started, Finished: finished,
		QueueMS: max(0, t.started.Sub(t.msg.Time).Milliseconds()), BuildMS: t.buildMS,
	}
}

func (t *task) newEvent(typ events.Type, data any, now time.Time) events.Event {
	return events.Event{
		ID: events.EventID(t.id, typ, t.attempt), Source: t.source, Type: typ, Time: now,
		TraceParent: t.event.TraceParent, TraceState: t.event.TraceState, Data: data,
	}
}

func (t *task) startedEvent(worker, logSubject string) events.Event {
	now := time.Now().UTC()
	return t.newEvent(events.TypeBuildStarted, &events.BuildStarted{
		RequestID: t.id, BuildID: t.plan.BuildID, Function: t.subject, Image: t.image, Base: t.base(),
		Attempt: t.attempt, Engine: t.engine, Worker: worker, LogSubject: logSubject, Started: now,
	}, now)
}

// completedEvent fills in what every completed request says.
func (t *task) completedEvent(data *events.BuildCompleted) events.Event {
	now := time.Now().UTC()
	data.RequestID, data.Function, data.Timings = t.id, t.subject, t.timings(now)
	return t.newEvent(events.TypeBuildCompleted, data, now)
}

func (t *task) failedEvent(err error, before requestRecord) events.Event {
	now := time.Now().UTC()
	kind := builder.KindOf(err)
	message := t.clean(err.Error())
	if kind == builder.KindUnavailable && before.Tries > 0 {
		message = t.clean(fmt.Sprintf("%s (tried %d times; before that: %s)",
			message, before.Tries+1, strings.Join(slices.Compact(slices.Clone(before.Causes)), "; ")))
	}
	data := &events.BuildFailed{
		RequestID: t.id, BuildID: t.plan.BuildID, Function: t.subject, Image: t.image, Base: t.base(),
		Attempt: t.attempt, Engine: t.engine,
		Error: events.FailureCause{
			Code: string(kind), Message: message, Hint: kind.Hint(), Retryable: kind.Retryable(),
		},
		LogTail: t.tail.Lines(), Timings: t.timings(now),
	}
	if decode, ok := errors.AsType[*events.DecodeError](err); ok {
		data.Error.Violations = decode.Violations[:min(len(decode.Violations), 100)]
	}
	return t.newEvent(events.TypeBuildFailed, data, now)
}

// clip cuts s to at most n bytes, at a rune, and says so.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " … (cut)"
}

func lastN(s []string, n int) []string { return s[max(0, len(s)-n):] }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
