package trigger

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/worker"
)

// Kinds of errors that only runs have. They travel the wire as the others do.
const (
	// KindImageRequired is a function without an image, for which none may be built.
	KindImageRequired builder.Kind = "image_required"
	// KindBuildFailed is an image that could not be built.
	KindBuildFailed builder.Kind = "build_failed"
	// KindRunFailed is a process that ended with another code than 0.
	KindRunFailed builder.Kind = "run_failed"
)

// Kinds returns every kind that run.failed may carry.
func Kinds() []builder.Kind {
	return append(builder.Kinds(), KindImageRequired, KindBuildFailed, KindRunFailed)
}

// Hint tells the user what to do about a run that failed with an error of this kind, in
// one sentence.
func Hint(k builder.Kind) string {
	switch k {
	case KindImageRequired:
		return "Set auto_build, or build the image first and set spec.image."
	case KindBuildFailed:
		return "Correct what the build says and request the run again."
	case KindRunFailed:
		return "Read the last lines of the log: the process ended by itself."
	case builder.KindTimeout:
		return "Make the run faster, or raise run.timeout (a Go duration such as 1h)."
	case builder.KindOutOfMemory:
		return "Make the run use less memory, or raise run.resources.memory."
	case builder.KindDiskFull:
		return "Write less, or have the operator raise the disk limit of runs or free space."
	case builder.KindConflict:
		return "Request the run again under an id of its own."
	default:
		return k.Hint()
	}
}

func imageRequired(f events.Function, why error) error {
	text := fmt.Sprintf("the image of function %s/%s is not built, and auto_build is not set", f.Project, f.Name)
	if why != nil {
		text += ": " + why.Error()
	}
	return builder.Errorf(KindImageRequired, "looking for the image", "%s", text)
}

func lostCause(owner, place string, silence time.Duration) error {
	return builder.Errorf(builder.KindUnavailable, "waiting for the run",
		"trigger %s at %s has the run in hand and gave no sign of life for %s; what became of the process is not known", owner, place, silence)
}

// event makes an event about a run.
func (t *Trigger) event(r record, typ events.Type, attempt int, data any, now time.Time) events.Event {
	return events.Event{
		ID: events.EventID(r.RunID, typ, attempt), Source: t.source(), Type: typ, Time: now,
		TraceParent: r.TraceParent, TraceState: r.TraceState, Data: data,
	}
}

func (r record) timings(finished time.Time) events.RunTimings {
	return events.RunTimings{Requested: r.Requested, Ready: r.Ready, Started: r.Started, Finished: finished}
}

func (t *Trigger) waiting(r record, says string) events.Event {
	now := time.Now().UTC()
	return t.event(r, events.TypeRunWaiting, 0, &events.RunWaiting{
		RunID: r.RunID, Function: r.Function, Name: r.Name, RequestID: r.Build, Waiting: now,
		Why: fmt.Sprintf("The image is built or looked for first, since %s asks for auto_build.", says),
	}, now)
}

// unwanted cancels the build of a run.
func (t *Trigger) unwanted(r record, suffix string) events.Event {
	e := t.event(r, events.TypeBuildCancel, 0, &events.BuildCancel{
		RequestID: r.Build, Reason: "The run that waited for it was canceled.",
	}, time.Now().UTC())
	e.ID = r.Build + suffix
	return e
}

func (t *Trigger) started(r record) events.Event {
	return t.event(r, events.TypeRunStarted, r.Attempt, &events.RunStarted{
		RunID: r.RunID, Function: r.Function, Name: r.Name, Attempt: r.Attempt, Runner: r.Runner, Trigger: r.Owner,
		ImageRef: r.Image, LogSubject: t.cfg.LogSubject(events.RunKey(r.RunID)), Started: r.Started,
	}, time.Now().UTC())
}

func (t *Trigger) completed(r record, result run.Result) events.Event {
	return t.event(r, events.TypeRunCompleted, 0, &events.RunCompleted{
		RunID: r.RunID, Function: r.Function, Name: r.Name, State: events.RunStateCompleted, Attempt: r.Attempt, Runner: r.Runner,
		ImageRef: r.Image, RequestID: r.Build, BuildID: r.BuildID, Outcome: r.Outcome, Results: results(result), Timings: r.timings(result.Finished),
	}, time.Now().UTC())
}

// results keeps what is an object of a bearable size: it comes from the function.
func results(r run.Result) json.RawMessage {
	var object map[string]json.RawMessage
	if len(r.Results) > run.MaxResults || json.Unmarshal(r.Results, &object) != nil || object == nil {
		return nil
	}
	return r.Results
}

// failure is what is known of a run that failed beside the error.
type failure struct {
	build  *events.FailureCause
	result *run.Result
	log    []string
}

func (t *Trigger) failed(r record, err error, f failure) events.Event {
	now := time.Now().UTC()
	data := &events.RunFailed{
		RunID: r.RunID, Function: r.Function, Name: r.Name, State: events.RunStateError, Error: causeOf(err, r), BuildError: f.build,
		Attempt: r.Attempt, Runner: r.Runner, ImageRef: r.Image, RequestID: r.Build, BuildID: r.BuildID, Outcome: r.Outcome,
		LogTail: f.log, Timings: r.timings(now),
	}
	if f.build != nil {
		data.Error.Hint, data.Error.Retryable = f.build.Hint, f.build.Retryable
	}
	if f.result != nil {
		data.ExitCode, data.Results, data.Timings.Finished = &f.result.ExitCode, results(*f.result), f.result.Finished
	}
	return t.event(r, events.TypeRunFailed, 0, data, now)
}

// causeOf is what run.failed says of err, after tries that broke before.
func causeOf(err error, r record) events.FailureCause {
	kind := builder.KindOf(err)
	if !slices.Contains(Kinds(), kind) {
		kind = builder.KindUnavailable
	}
	message := cmp.Or(strings.TrimSpace(err.Error()), string(kind))
	if kind == builder.KindUnavailable && r.Tries > 0 {
		message = fmt.Sprintf("%s (tried %d times; before that: %s)", message, r.Tries+1, strings.Join(slices.Compact(slices.Clone(r.Causes)), "; "))
	}
	cause := events.FailureCause{Code: string(kind), Message: worker.Clip(message, 8<<10), Hint: Hint(kind), Retryable: kind.Retryable()}
	if decode, ok := errors.AsType[*events.DecodeError](err); ok {
		cause.Violations = decode.Violations[:min(len(decode.Violations), 100)]
	}
	return cause
}

func (t *Trigger) canceled(r record, reason string) events.Event {
	now := time.Now().UTC()
	return t.event(r, events.TypeRunCanceled, 0, &events.RunCanceled{
		RunID: r.RunID, Function: r.Function, Name: r.Name, Reason: cmp.Or(reason, "The run was canceled."),
		Attempt: r.Attempt, Runner: r.Runner, ImageRef: r.Image, RequestID: r.Build, Timings: r.timings(now),
	}, now)
}
