package events

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// RunRequest is the data of run.requested: a function, what to do with it, and how its
// image is built if it needs one.
type RunRequest struct {
	// Function is the MLRun function object. Unknown keys inside are ignored.
	Function json.RawMessage `json:"function"`
	Run      RunSpec         `json:"run,omitzero"`
	// AutoBuild lets an image be built that the function needs. Nil: as the function's
	// spec.build.auto_build says.
	AutoBuild *Flag `json:"auto_build,omitempty"`
	// What follows is about the build, as in BuildRequest.
	WithMLRun             *Flag             `json:"with_mlrun,omitempty"`
	ForceBuild            bool              `json:"force_build,omitempty"`
	MLRunVersionSpecifier string            `json:"mlrun_version_specifier,omitempty"`
	BuilderEnv            map[string]string `json:"builder_env,omitempty"`
	Options               Options           `json:"options,omitzero"`
}

// Build is the request for the image of the run. What the function has already is no
// reason to build nothing: whether it needs a build is decided by what goes into it.
func (r RunRequest) Build() BuildRequest {
	return BuildRequest{
		Function: r.Function, WithMLRun: r.WithMLRun, ForceBuild: r.ForceBuild,
		MLRunVersionSpecifier: r.MLRunVersionSpecifier, BuilderEnv: r.BuilderEnv, Options: r.Options,
	}
}

// RunSpec is what is run, in the terms of MLRun's run specification.
type RunSpec struct {
	// Name is for people. Defaults to the function's.
	Name string `json:"name,omitempty"`
	// Project defaults to the function's.
	Project string `json:"project,omitempty"`
	// Handler is what is called in the function's code.
	Handler      string                     `json:"handler,omitempty"`
	Parameters   map[string]json.RawMessage `json:"parameters,omitempty"`
	Inputs       map[string]string          `json:"inputs,omitempty"`
	Outputs      []string                   `json:"outputs,omitempty"`
	ArtifactPath string                     `json:"artifact_path,omitempty"`
	// Env is the environment, above the function's. No secrets: events can be read.
	Env    map[string]string `json:"env,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Args are those of the command, in place of the function's.
	Args      []string     `json:"args,omitempty"`
	Workdir   string       `json:"workdir,omitempty"`
	Resources RunResources `json:"resources,omitzero"`
	// Timeout bounds the run from the start of its process, as a Go duration ("30m").
	// Defaults to the trigger's.
	Timeout string `json:"timeout,omitempty"`
}

// RunResources limit a run. 0: as the function says, else the runner's default.
type RunResources struct {
	// Memory is bytes, CPU is cores.
	Memory int64   `json:"memory,omitempty"`
	CPU    float64 `json:"cpu,omitempty"`
	GPUs   int64   `json:"gpus,omitempty"`
}

// RunCancel is the data of run.cancel.
type RunCancel struct {
	RunID string `json:"run_id"`
	// Reason is for people; it is repeated in run.canceled.
	Reason string `json:"reason,omitempty"`
}

// RunWaiting is the data of run.waiting: the run waits for its image. There is at most
// one for each run.
type RunWaiting struct {
	RunID    string   `json:"run_id"`
	Function Function `json:"function"`
	Name     string   `json:"name,omitempty"`
	// Why is a sentence.
	Why string `json:"why"`
	// RequestID is the build.requested that the run waits for; BuildID is not known
	// before that is planned.
	RequestID string    `json:"request_id"`
	BuildID   string    `json:"build_id,omitempty"`
	Waiting   time.Time `json:"waiting"`
}

// RunStarted is the data of run.started: one for each attempt whose process started.
type RunStarted struct {
	RunID      string    `json:"run_id"`
	Function   Function  `json:"function"`
	Name       string    `json:"name,omitempty"`
	Attempt    int       `json:"attempt"`
	Runner     string    `json:"runner"`
	Trigger    string    `json:"trigger"`
	ImageRef   string    `json:"image_ref"`
	LogSubject string    `json:"log_subject"`
	Started    time.Time `json:"started"`
}

// RunState is MLRun's word for how a run ended.
type RunState string

// States of ended runs. Values are wire format: append only.
const (
	RunStateCompleted RunState = "completed"
	RunStateError     RunState = "error"
)

// RunTimings are the times of a run: requested, its image there, its process started,
// ended. What did not happen is zero.
type RunTimings struct {
	Requested time.Time `json:"requested"`
	Ready     time.Time `json:"ready,omitzero"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished"`
}

// RunCompleted is the data of run.completed: the process ended with 0.
type RunCompleted struct {
	RunID    string   `json:"run_id"`
	Function Function `json:"function"`
	Name     string   `json:"name,omitempty"`
	// State is RunStateCompleted.
	State    RunState `json:"state"`
	ExitCode int      `json:"exit_code"`
	Attempt  int      `json:"attempt"`
	Runner   string   `json:"runner"`
	ImageRef string   `json:"image_ref"`
	// RequestID and BuildID are the build's that the run waited for, Outcome how it got
	// its image; empty when none was asked for.
	RequestID string  `json:"request_id,omitempty"`
	BuildID   string  `json:"build_id,omitempty"`
	Outcome   Outcome `json:"outcome,omitempty"`
	// Results is a JSON object of what the function handed back.
	Results json.RawMessage `json:"results,omitempty"`
	Timings RunTimings      `json:"timings"`
}

// RunFailed is the data of run.failed.
type RunFailed struct {
	RunID    string   `json:"run_id"`
	Function Function `json:"function,omitzero"`
	Name     string   `json:"name,omitempty"`
	// State is RunStateError.
	State RunState     `json:"state"`
	Error FailureCause `json:"error"`
	// BuildError is what build.failed said, if that was the cause.
	BuildError *FailureCause `json:"build_error,omitempty"`
	// ExitCode is nil when no process ended.
	ExitCode  *int            `json:"exit_code,omitempty"`
	Attempt   int             `json:"attempt,omitempty"`
	Runner    string          `json:"runner,omitempty"`
	ImageRef  string          `json:"image_ref,omitempty"`
	RequestID string          `json:"request_id,omitempty"`
	BuildID   string          `json:"build_id,omitempty"`
	Outcome   Outcome         `json:"outcome,omitempty"`
	Results   json.RawMessage `json:"results,omitempty"`
	// LogTail is the last lines of the run's output, or of the build's log when that
	// failed; redacted, at most 20.
	LogTail []string   `json:"log_tail,omitempty"`
	Timings RunTimings `json:"timings"`
}

// RunCanceled is the data of run.canceled.
type RunCanceled struct {
	RunID    string   `json:"run_id"`
	Function Function `json:"function,omitzero"`
	Name     string   `json:"name,omitempty"`
	// Reason is a sentence.
	Reason    string     `json:"reason"`
	Attempt   int        `json:"attempt,omitempty"`
	Runner    string     `json:"runner,omitempty"`
	ImageRef  string     `json:"image_ref,omitempty"`
	RequestID string     `json:"request_id,omitempty"`
	Timings   RunTimings `json:"timings"`
}

// RunOf returns the id of the run that an emitted event is about; empty for other events.
func RunOf(e Event) string {
	switch data := e.Data.(type) {
	case *RunWaiting:
		return data.RunID
	case *RunStarted:
		return data.RunID
	case *RunCompleted:
		return data.RunID
	case *RunFailed:
		return data.RunID
	case *RunCanceled:
		return data.RunID
	default:
		return ""
	}
}

// RunKey names a run where its id may not stand, in subjects and keys: the SHA-256 of
// the id as 64 hex digits.
func RunKey(runID string) string {
	sum := sha256.Sum256([]byte(runID))
	return hex.EncodeToString(sum[:])
}
