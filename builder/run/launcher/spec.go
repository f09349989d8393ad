package launcher

import (
	"encoding/json"
	"time"
)

// Paths inside a run's container.
const (
	// Dir is a folder that the runner mounts. It holds the launcher and its Spec.
	Dir = "/run/kiln"
	// Program is the launcher.
	Program = Dir + "/init"
	// SpecFile holds the Spec as JSON.
	SpecFile = Dir + "/spec.json"
	// Out is a folder that the run's user may write to.
	Out = Dir + "/out"
	// ResultsFile is where a function puts what it hands back: a JSON object. The
	// variable ResultsVar of the process holds this path.
	ResultsFile = Out + "/results.json"
	// ReportFile and StartedFile are where the Report and the time of the start go,
	// unless the Spec says otherwise.
	ReportFile  = Out + "/report.json"
	StartedFile = Out + "/started"
)

// ResultsVar is the environment variable that holds the path of the results file.
const ResultsVar = "KILN_RESULTS"

// Spec is what the launcher does.
type Spec struct {
	// Commands are in the order of preference: the first one whose program is there is
	// started.
	Commands []Command `json:"commands"`
	// Entrypoint is the image's own entrypoint and command, for a command without Args.
	Entrypoint []string `json:"entrypoint,omitempty"`
	// Files are written before anything is started.
	Files []File `json:"files,omitempty"`
	// Results is the file that the process may leave its results in, MaxResults how many
	// bytes are read of it.
	Results    string `json:"results"`
	MaxResults int    `json:"max_results"`
	// Report is the file that the Report is written to, MaxReport how many bytes it may
	// have: results that do not fit are left out. 0 is no limit.
	Report    string `json:"report"`
	MaxReport int    `json:"max_report,omitempty"`
	// Pipe puts a pipe between the process and the launcher's standard output: where that
	// is a file, a process that opens /dev/stdout could empty it otherwise.
	Pipe bool `json:"pipe,omitempty"`
	// Started is the file that gets the time at which the process was started, in RFC
	// 3339 form. Empty: none.
	Started string `json:"started,omitempty"`
}

// Command is a program with its arguments and additional environment ("NAME=value").
type Command struct {
	// Needs is looked up in PATH unless it is an absolute path; empty: the command is
	// taken in any case.
	Needs string   `json:"needs,omitempty"`
	Args  []string `json:"args,omitempty"`
	Env   []string `json:"env,omitempty"`
}

// File is a file to write. Folders above it are made.
type File struct {
	Path string `json:"path"`
	Data []byte `json:"data"`
	Mode uint32 `json:"mode"`
}

// Report says how the process ended.
type Report struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// ExitCode is the process's, or 128 and the number of the signal that ended it.
	ExitCode int `json:"exit_code"`
	// Results is what the process left, a JSON object; nil: nothing.
	Results json.RawMessage `json:"results,omitempty"`
	// Note says why results were left out.
	Note string `json:"note,omitempty"`
	// Failure says why no process was started; the other fields mean nothing then.
	Failure string `json:"failure,omitempty"`
}
