package builder

import "time"

// Plan is everything that an engine needs to execute a build. It is a pure
// value: no I/O happens after it that it does not name.
type Plan struct {
	// BuildID is the SHA-256 (64 hex digits) of everything that goes into the
	// image; see Identity. Empty when the base is not pinned (an offline plan).
	BuildID string
	// Attempt counts executions of this build, from 1. Set by the worker.
	Attempt int
	// Base is the pinned base image.
	Base Image
	// Dockerfile is the text to build. Its FROM names Base by digest.
	Dockerfile string
	// Context holds the files that the Dockerfile mounts or copies.
	Context []File
	// BuildArgs are passed by name; the executor reads values from its environment.
	BuildArgs []Arg
	// Secrets are offered to RUN through --mount=type=secret, by ID.
	Secrets []Secret
	// Source is the pinned code that goes into the folder SourceDir of the context; nil:
	// none. The engine fetches it, with SourceEnv.
	Source *Source
	// RegistrySecret names the registry credentials that go before the configured ones.
	RegistrySecret string
	// Verbose asks for a detailed log.
	Verbose bool
	// RequestID, Project, Function and Tag say who asked first; no part of the identity.
	RequestID, Project, Function, Tag string
	// Scheduling is the function's; no part of the identity.
	Scheduling Scheduling
	// Destination is "<repository>:kiln-<build_id>", what the executor pushes.
	Destination string
	// Target is the reference that the user asked for; it is moved to the digest
	// after the build was verified.
	Target string
	// Platform is os/arch[/variant].
	Platform string
	// Executor is the version of Kaniko and the flags that shape the image.
	Executor Executor
	// Limits bound the execution.
	Limits Limits
	// Identity lists the fields that BuildID is the digest of, for people.
	Identity []Field
}

// SourceDir is the folder of the build context that holds the code.
const SourceDir = "source"

// SourceEnv returns the variables that credentials for fetching the source are taken
// from: the build arguments and, where none has the name, the secrets.
func (p Plan) SourceEnv() map[string]string {
	env := make(map[string]string, len(p.Secrets)+len(p.BuildArgs))
	for _, s := range p.Secrets {
		env[s.ID] = s.Value
	}
	for _, a := range p.BuildArgs {
		env[a.Name] = a.Value
	}
	return env
}

// Image is a reference and what the registry says about it.
type Image struct {
	// Ref is the reference as it was asked for.
	Ref string
	// Digest is the manifest digest for the platform ("sha256:…").
	Digest string
	// Size is the sum of the compressed layer sizes in bytes; 0 is unknown.
	Size int64
}

// File is a file of the build context. Name is a clean relative slash path.
type File struct {
	Name string
	Data []byte
	Mode uint32
}

// Secret is a value that RUN instructions may mount by ID.
type Secret struct {
	ID    string
	Value string
	// Version enters the identity in place of the value.
	Version string
	// Public values hold no credentials and may be shown, in logs for example.
	Public bool
}

// Executor names the build tool.
type Executor struct {
	// Name and Version, for example "osscontainertools/kaniko" and "v1.27.5".
	Name, Version string
	// Flags are the flags that can change the image ("--snapshot-mode=redo").
	Flags []string
}

// Limits bound one execution. Zero values mean the engine's default.
type Limits struct {
	Timeout time.Duration
	// Memory and Disk are bytes, CPU is cores.
	Memory int64
	Disk   int64
	CPU    float64
	PIDs   int64
}

// Field is one input of the build identity.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Result is what an engine made.
type Result struct {
	// Digest of the pushed manifest ("sha256:…").
	Digest string
	// Duration of the execution.
	Duration time.Duration
}
