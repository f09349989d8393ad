package builder

import "time"

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
	// Timeout bounds the engine's work. Zero: the configured default.
	Timeout time.Duration
	// Platform is os/arch[/variant]. Empty: the configured default.
	Platform string
	// Rebuild ignores an identical finished build (force_build, options.no_cache).
	Rebuild bool
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
