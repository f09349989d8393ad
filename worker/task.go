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
	"kiln/worker/backlog"
)

// task is a request on its way and what is known of it so far.
type task struct {
	id       string
	content  string
	sequence uint64
	event    events.Event
	// fallbackID is the message's own, requested when it was stored.
	fallbackID string
	requested  time.Time
	// request is nil when the message could not be decoded; fault says why.
	request *events.BuildRequest
	fault   error
	subject events.Function
	started time.Time
	log     zerolog.Logger
	source  string
	// record is the request's record as it was read last.
	record entry[requestRecord]

	// Known once planned. Reason says why a build is needed.
	image    string
	reason   string
	rebuild  bool
	plan     builder.Plan
	engine   string
	attempt  int
	buildMS  int64
	redactor *builder.Redactor
	tail     Tail
}

func (w *Worker) newTask(raw events.Message, sequence uint64) *task {
	e, err := events.Decode(raw)
	t := &task{
		id: e.ID, sequence: sequence, event: e, fallbackID: raw.FallbackID, requested: raw.Time, started: time.Now().UTC(),
		source: w.source(), redactor: builder.NewRedactor(),
	}
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
	t.log = w.deps.Log.With().Str("request_id", t.id).Logger()
	if raw.Time.IsZero() {
		t.requested = t.started
	}
	return t
}

// taskOf is the task of a request whose message is not needed any more: the entry has
// what it takes to end it.
func (w *Worker) taskOf(e backlog.Entry) *task {
	t := &task{
		id: e.RequestID, content: e.Content, sequence: e.Sequence, requested: e.Requested, started: e.Accepted,
		event:   events.Event{ID: e.RequestID, TraceParent: e.TraceParent, TraceState: e.TraceState},
		subject: events.Function{Project: e.Project, Name: e.Function, Tag: e.Tag}, source: w.source(),
		image: e.Image, reason: e.Reason, rebuild: e.Rebuild, engine: e.Engine,
		plan: builder.Plan{
			BuildID: e.BuildID, Base: builder.Image{Ref: e.Base.Ref, Digest: e.Base.Digest}, Target: e.Target,
			Destination: e.Destination, RegistrySecret: e.RegistrySecret,
		},
	}
	t.redactor = w.deps.Builder.Redactor(t.plan)
	t.log = w.deps.Log.With().Str("request_id", t.id).Str("build_id", e.BuildID).Logger()
	return t
}

// entry is what the backlog keeps of a planned task.
func (t *task) entry(worker string, seen uint64, now time.Time) backlog.Entry {
	return backlog.Entry{
		RequestID: t.id, Content: t.content, Sequence: t.sequence, BuildID: t.plan.BuildID,
		Project: t.subject.Project, Function: t.subject.Name, Tag: t.subject.Tag,
		Image: t.image, Target: t.plan.Target, Destination: t.plan.Destination, RegistrySecret: t.plan.RegistrySecret,
		Base: t.base(), Engine: t.engine, Reason: t.reason,
		Priority: t.request.Options.Priority, Supersede: t.request.Options.Supersede, Rebuild: t.rebuild,
		Worker: worker, Requested: t.requested, Accepted: now, Seen: seen, State: backlog.Waiting,
		TraceParent: t.event.TraceParent, TraceState: t.event.TraceState,
	}
}

func (w *Worker) source() string { return "/kiln/worker/" + w.cfg.Name }

// conflict makes t the task of telling that its id is taken by a different request.
// It is told under the message's own id, since the other request owns this one.
func (t *task) conflict() {
	t.fault = builder.Errorf(builder.KindConflict, "reading the request",
		"request id %q was used before by a different request", t.id)
	t.id = t.fallbackID
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
func (t *task) clean(text string) string { return Clip(t.redactor.Text(text), 8<<10) }

func (t *task) timings(finished time.Time) events.Timings {
	return events.Timings{
		Requested: t.requested.UTC(), Started: t.started, Finished: finished,
		QueueMS: max(0, t.started.Sub(t.requested).Milliseconds()), BuildMS: t.buildMS,
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

// failure is what build.failed says of err, after tries that broke before, with their
// last errors.
func (t *task) failure(err error, tries int, before []string) *events.FailureCause {
	kind := builder.KindOf(err)
	message := t.clean(err.Error())
	if kind == builder.KindUnavailable && tries > 0 {
		message = t.clean(fmt.Sprintf("%s (tried %d times; before that: %s)",
			message, tries+1, strings.Join(slices.Compact(slices.Clone(before)), "; ")))
	}
	cause := &events.FailureCause{Code: string(kind), Message: message, Hint: kind.Hint(), Retryable: kind.Retryable()}
	if decode, ok := errors.AsType[*events.DecodeError](err); ok {
		cause.Violations = decode.Violations[:min(len(decode.Violations), 100)]
	}
	return cause
}

func (t *task) failedEvent(cause *events.FailureCause, log []string) events.Event {
	now := time.Now().UTC()
	return t.newEvent(events.TypeBuildFailed, &events.BuildFailed{
		RequestID: t.id, BuildID: t.plan.BuildID, Function: t.subject, Image: t.image, Base: t.base(),
		Attempt: t.attempt, Engine: t.engine, Error: *cause, LogTail: log, Timings: t.timings(now),
	}, now)
}

func (t *task) canceledEvent(reason, supersededBy string) events.Event {
	now := time.Now().UTC()
	return t.newEvent(events.TypeBuildCanceled, &events.BuildCanceled{
		RequestID: t.id, BuildID: t.plan.BuildID, Function: t.subject, Image: t.image,
		Reason: t.clean(reason), SupersededBy: supersededBy, Timings: t.timings(now),
	}, now)
}

// Clip cuts s to at most n bytes, at a rune, and says so.
func Clip(s string, n int) string {
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
