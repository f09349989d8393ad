package builder

import (
	"encoding/json"
	"time"

	"kiln/builder/nuclio"
)

// Request is what a user asks for, after every rule of MLRun was applied
// (builder/function makes it) and before anything was looked up.
type Request struct {
	// ID is the request id of the event.
	ID string
	// Project, Name and Tag identify the function; Tag is never empty.
	Project, Name, Tag string
	// Decision says whether a build is needed at all, and why.
	Decision Decision
	// Base is the image that the build starts from, as the user named it or as
	// the configuration says. "scratch" is allowed.
	Base string
	// Target is the image to make, as a full reference (registry/repository:tag).
	Target string
	// UserImage is Target as the user named it; it may be a short form (".name").
	UserImage string
	// Commands run in order, one RUN each. A command may have several lines.
	Commands []string
	// Requirements are lines of a pip requirements file, mlrun's own included.
	Requirements []string
	// BuildArgs are the builder_env entries in order of their names.
	BuildArgs []Arg
	// Extra is Dockerfile text that is appended as it is.
	Extra string
	// Source is the code that goes into the image, not pinned. Nil: none.
	Source *Source
	// Secrets are the names of the project's secrets that the build may see. Nil: all.
	Secrets []string
	// RegistrySecret names the registry credentials that go before the configured ones
	// (spec.build.secret). Empty: only the configured ones.
	RegistrySecret string
	// Flags are flags of the executor that the user asks for, as "--name=value" or
	// "--name", checked against those that the executor has and Kiln does not own.
	Flags []string
	// Verbose asks for a detailed log.
	Verbose bool
	// Scheduling says where the function asks to be built.
	Scheduling Scheduling
	// Timeout bounds the engine's work. Zero: the configured default.
	Timeout time.Duration
	// Platform is os/arch[/variant]. Empty: the configured default.
	Platform string
	// Nuclio is what Nuclio makes the function of, in place of a build; nil: Nuclio has
	// no part in it.
	Nuclio *nuclio.Spec
	// Rebuild ignores an identical finished build (force_build, options.no_cache).
	Rebuild bool
}

// Scheduling is what a function asks of a cluster, in Kubernetes' own terms. Engines
// without a cluster leave it alone. Affinity is a JSON object, Tolerations a JSON list.
type Scheduling struct {
	NodeName       string
	NodeSelector   map[string]string
	Affinity       json.RawMessage
	Tolerations    json.RawMessage
	PriorityClass  string
	ServiceAccount string
}

// Decision is the answer to "is a build needed?".
type Decision struct {
	Build bool
	// Image is what to run when no build is needed.
	Image string
	// Reason is a sentence for people.
	Reason string
}

// Arg is a build argument.
type Arg struct {
	Name, Value string
	// Secret values are redacted wherever they could be shown.
	Secret bool
}
