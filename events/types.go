package events

import (
	"encoding/json"
	"time"
)

// Type names an event. It is the subject without the configured prefix.
type Type string

// Event types. Values are wire format: append only.
const (
	TypeBuildRequested Type = "build.requested"
	TypeBuildStarted   Type = "build.started"
	TypeBuildCompleted Type = "build.completed"
	TypeBuildFailed    Type = "build.failed"
	// TypeBuildCanceled ends a request that was canceled or superseded.
	TypeBuildCanceled Type = "build.canceled"
	// TypeBuildQueued tells that an accepted request waits, and for what.
	TypeBuildQueued Type = "build.queued"
	// TypeBuildCancel asks to end a request, or all requests of a build.
	TypeBuildCancel Type = "build.cancel"
	// TypeBuildDead holds a request that was given up for reasons of ours.
	TypeBuildDead Type = "build.dead"

	TypeRunRequested Type = "run.requested"
	// TypeRunWaiting tells that a run waits for its image.
	TypeRunWaiting   Type = "run.waiting"
	TypeRunStarted   Type = "run.started"
	TypeRunCompleted Type = "run.completed"
	TypeRunFailed    Type = "run.failed"
	TypeRunCanceled  Type = "run.canceled"
	// TypeRunCancel asks to end a run.
	TypeRunCancel Type = "run.cancel"
)

// CloudEvent returns the CloudEvents "type" attribute, for example
// "dev.kiln.build.completed.v1".
func (t Type) CloudEvent() string { return "dev.kiln." + string(t) + ".v1" }

// Terminal reports whether an event of this type ends a request or a run.
func (t Type) Terminal() bool {
	switch t {
	case TypeBuildCompleted, TypeBuildFailed, TypeBuildCanceled, TypeRunCompleted, TypeRunFailed, TypeRunCanceled:
		return true
	default:
		return false
	}
}

// Asked reports whether an event of this type comes from requesters, who need no envelope;
// all others are Kiln's own.
func (t Type) Asked() bool {
	switch t {
	case TypeBuildRequested, TypeBuildCancel, TypeRunRequested, TypeRunCancel:
		return true
	default:
		return false
	}
}

// Message is an encoded event as the transport carries it. Header keys keep
// their case: NATS does not canonicalise them.
type Message struct {
	Subject string
	Header  map[string][]string
	Data    []byte
	// FallbackID names a message that brings no id of its own. The transport
	// derives it from stream and sequence ("seq:BUILD:42"), so that it is the
	// same after a redelivery.
	FallbackID string
	// Time is when the transport stored the message.
	Time time.Time
}

// Event is a decoded event: the CloudEvents attributes that Kiln uses and the data.
type Event struct {
	// ID is the CloudEvents id. Of a build.requested it is the request id, of a
	// run.requested the run id, of a cancel it names nothing else; of an emitted event it is also the Nats-Msg-Id, see EventID.
	ID          string
	Source      string
	Type        Type
	Time        time.Time
	TraceParent string
	TraceState  string
	// Data is a pointer to the type's data: *BuildRequest, *BuildStarted and so on.
	Data any
}

// Function identifies the function that an image is for.
type Function struct {
	Project string `json:"project"`
	Name    string `json:"name"`
	Tag     string `json:"tag"`
}

// BuildRequest is the data of build.requested: the body that MLRun's client
// posts to build/function, plus options.
type BuildRequest struct {
	// Function is the MLRun function object. Unknown keys inside are ignored.
	Function json.RawMessage `json:"function"`
	// WithMLRun asks for mlrun in the image. Nil: decided from the base image.
	WithMLRun             *Flag             `json:"with_mlrun,omitempty"`
	SkipDeployed          bool              `json:"skip_deployed,omitempty"`
	ForceBuild            bool              `json:"force_build,omitempty"`
	MLRunVersionSpecifier string            `json:"mlrun_version_specifier,omitempty"`
	BuilderEnv            map[string]string `json:"builder_env,omitempty"`
	Options               Options           `json:"options,omitzero"`
}

// Options are Kiln's own additions to MLRun's request.
type Options struct {
	// Timeout bounds the build, as a Go duration ("30m"). Defaults to the worker's.
	Timeout string `json:"timeout,omitempty"`
	// Platform is os/arch[/variant]. Defaults to the worker's.
	Platform string `json:"platform,omitempty"`
	// NoCache builds again even when an identical build is finished.
	NoCache bool `json:"no_cache,omitempty"`
	// LayerOrder says whether the source comes before commands and requirements:
	// "source_first" as in MLRun, "source_last", or "auto", the default: last when no
	// command can depend on it.
	LayerOrder string `json:"layer_order,omitempty"`
	// Secrets are the names of the project's secrets that the build may see. Nil: all.
	Secrets []string `json:"secrets,omitzero"`
	// ClientVersion and ClientPythonVersion are what MLRun's client sends as headers:
	// the version of mlrun and of Python that the function was written with.
	ClientVersion       string `json:"client_version,omitempty"`
	ClientPythonVersion string `json:"client_python_version,omitempty"`
	// Priority says who waits for whom: interactive, auto or bulk. Defaults to auto.
	Priority Priority `json:"priority,omitempty"`
	// Supersede cancels older requests for the same project, function and tag that
	// have not started yet.
	Supersede bool `json:"supersede,omitempty"`
}

// Priority is a class of requests.
type Priority string

// Priorities, most urgent first. Values are wire format: append only.
const (
	PriorityInteractive Priority = "interactive"
	PriorityAuto        Priority = "auto"
	PriorityBulk        Priority = "bulk"
)

// BuildQueued is the data of build.queued: the request was accepted and waits. There is
// at most one for each request, and none where the build starts at once.
type BuildQueued struct {
	RequestID string   `json:"request_id"`
	BuildID   string   `json:"build_id"`
	Function  Function `json:"function"`
	Image     string   `json:"image"`
	Priority  Priority `json:"priority"`
	// Position is how many requests go first, plus one, at the time of the event; 0
	// when the request shares a build that runs already.
	Position int `json:"position"`
	// Reason is a sentence: what the request waits for.
	Reason string `json:"reason"`
	// EstimatedStart is zero when nothing is known to estimate from.
	EstimatedStart time.Time `json:"estimated_start,omitzero"`
	Queued         time.Time `json:"queued"`
}

// BuildCancel is the data of build.cancel. Exactly one id is set.
type BuildCancel struct {
	RequestID string `json:"request_id,omitempty"`
	// BuildID cancels every request that waits for this build.
	BuildID string `json:"build_id,omitempty"`
	// Reason is for people; it is repeated in build.canceled.
	Reason string `json:"reason,omitempty"`
}

// BuildCanceled is the data of build.canceled.
type BuildCanceled struct {
	RequestID string   `json:"request_id"`
	BuildID   string   `json:"build_id,omitempty"`
	Function  Function `json:"function,omitzero"`
	Image     string   `json:"image,omitempty"`
	// Reason is a sentence.
	Reason string `json:"reason"`
	// SupersededBy is the newer request that made this one needless.
	SupersededBy string  `json:"superseded_by,omitempty"`
	Timings      Timings `json:"timings"`
}

// BuildDead is the data of build.dead: a request that failed as unavailable after all
// its attempts, as it was published, so that it can be published again.
type BuildDead struct {
	RequestID string       `json:"request_id"`
	Function  Function     `json:"function,omitzero"`
	Error     FailureCause `json:"error"`
	// Causes are the errors of the attempts, oldest first, redacted.
	Causes   []string `json:"causes,omitempty"`
	Attempts int      `json:"attempts"`
	// Sequence is the position of the request in its stream.
	Sequence uint64       `json:"sequence"`
	Request  BuildRequest `json:"request"`
	Failed   time.Time    `json:"failed"`
}

// BuildStarted is the data of build.started: one per attempt that really runs.
type BuildStarted struct {
	RequestID  string    `json:"request_id"`
	BuildID    string    `json:"build_id"`
	Function   Function  `json:"function"`
	Image      string    `json:"image"`
	Base       Base      `json:"base"`
	Attempt    int       `json:"attempt"`
	Engine     string    `json:"engine"`
	Worker     string    `json:"worker"`
	LogSubject string    `json:"log_subject"`
	Started    time.Time `json:"started"`
}

// Outcome says how a completed request got its image.
type Outcome string

// Outcomes. Values are wire format: append only.
const (
	OutcomeBuilt     Outcome = "built"
	OutcomeReused    Outcome = "reused"
	OutcomeNotNeeded Outcome = "not_needed"
)

// Base is the image that a build starts from, and the digest it was pinned to.
type Base struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest,omitempty"`
}

// Timings of a request. QueueMS is from the storing of the request to the first
// handling, BuildMS is what the engine took; both are milliseconds.
type Timings struct {
	Requested time.Time `json:"requested"`
	Started   time.Time `json:"started"`
	Finished  time.Time `json:"finished"`
	QueueMS   int64     `json:"queue_ms"`
	BuildMS   int64     `json:"build_ms"`
}

// BuildCompleted is the data of build.completed.
type BuildCompleted struct {
	RequestID string   `json:"request_id"`
	BuildID   string   `json:"build_id,omitempty"`
	Function  Function `json:"function"`
	Outcome   Outcome  `json:"outcome"`
	// Reason is a sentence: why it was or was not built.
	Reason string `json:"reason"`
	// Image is the reference as the user named it; of a function that Nuclio deployed,
	// as Nuclio reports it.
	Image string `json:"image"`
	// Digest and ImageRef ("repo@sha256:…") are empty when nothing was built.
	Digest   string  `json:"digest,omitempty"`
	ImageRef string  `json:"image_ref,omitempty"`
	Base     Base    `json:"base,omitzero"`
	Attempt  int     `json:"attempt,omitempty"`
	Engine   string  `json:"engine,omitempty"`
	Timings  Timings `json:"timings"`
}

// BuildFailed is the data of build.failed.
type BuildFailed struct {
	RequestID string       `json:"request_id"`
	BuildID   string       `json:"build_id,omitempty"`
	Function  Function     `json:"function,omitzero"`
	Image     string       `json:"image,omitempty"`
	Base      Base         `json:"base,omitzero"`
	Attempt   int          `json:"attempt,omitempty"`
	Engine    string       `json:"engine,omitempty"`
	Error     FailureCause `json:"error"`
	// LogTail is the last lines of the build's log, redacted; at most 20.
	LogTail []string `json:"log_tail,omitempty"`
	Timings Timings  `json:"timings"`
}

// FailureCause says what went wrong and what to do.
type FailureCause struct {
	// Code is one of the codes of the schema; append only.
	Code      string `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint"`
	Retryable bool   `json:"retryable"`
	// Violations lists every place where the request breaks its schema.
	Violations []Violation `json:"violations,omitempty"`
}

// Violation is one place where a document breaks its schema.
type Violation struct {
	// Path is a JSON pointer into the document ("" is the whole document).
	Path    string `json:"path"`
	Message string `json:"message"`
}
