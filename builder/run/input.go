package run

import (
	"encoding/json"
	"time"

	"kiln/builder"
)

// Input is what a run is resolved from. Resolve changes none of it.
type Input struct {
	// RunID and Attempt are the plan's.
	RunID   string
	Attempt int
	// Function is the MLRun function object: kind, metadata, spec.
	Function json.RawMessage
	// Run is what the requester asks for.
	Run Request
	// Image is what to run, "repository@sha256:…".
	Image string
	// Secrets are those of the project, by name.
	Secrets map[string]string
	// Config holds defaults and bounds.
	Config Config
}

// Request is the run that is asked for, in the words of MLRun's run object.
type Request struct {
	// Name of the run. Defaults to the function's name, with the handler's.
	Name string
	// Project defaults to the function's.
	Project string
	// Handler is the function to call: "train", "module.train" or "Class::method".
	// Defaults to the function's spec.default_handler.
	Handler string
	// Parameters are JSON values.
	Parameters map[string]json.RawMessage
	// Inputs are names and URLs of data, Outputs names of what is expected.
	Inputs  map[string]string
	Outputs []string
	// ArtifactPath is where artifacts go. Defaults to Config.ArtifactPath.
	ArtifactPath string
	// Env goes before the function's spec.env.
	Env map[string]string
	// Labels are the run's own.
	Labels map[string]string
	// Args replace the function's spec.args. Nil: they stay.
	Args []string
	// Workdir goes before the function's spec.workdir.
	Workdir string
	// Resources go before the function's spec.resources.
	Resources Resources
	// Timeout bounds the run. Defaults to Config.Timeout.
	Timeout time.Duration
}

// Resources bound a process. Zero values are not said.
type Resources struct {
	// Memory is bytes, CPU is cores, PIDs is processes.
	Memory int64
	CPU    float64
	PIDs   int64
	// GPUs is a number by resource name ("nvidia.com/gpu").
	GPUs map[string]int64
}

// Config holds the operator's defaults and bounds of runs. The zero value has none.
type Config struct {
	// Timeout of a run that does not say. 0: the runner's default.
	Timeout time.Duration
	// Max bounds what a run may ask for, and its timeout. Zero fields bound nothing.
	Max builder.Limits
	// ArtifactPath is where artifacts go by default.
	ArtifactPath string
	// DBPath is the address of MLRun's API for the process (MLRUN_DBPATH). Empty: none.
	DBPath string
}
