package kaniko

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"kiln/builder"
)

// Exit codes of the executor.
const (
	// killed is that of a process that got SIGKILL.
	killed = 137
	// signaled is what the executor ends with after a command that a signal ended.
	signaled = 255
)

// Outcome is how a run of the executor ended.
type Outcome struct {
	// ExitCode of the executor. It is that of the command that failed, if one did.
	ExitCode int
	// OOMKilled and DiskFull are what the engine saw, apart from the log.
	OOMKilled, DiskFull bool
	// Limits of the run.
	Limits builder.Limits
	// Log of the run, closed.
	Log *Log
}

// Classify returns what a failed run means, as a *builder.Error. What only the
// executor's text says, the exit code must agree with; what nobody can tell is of
// KindUnavailable.
func Classify(o Outcome) error {
	switch {
	case o.OOMKilled:
		return builder.Errorf(builder.KindOutOfMemory, o.op(), "it needed more memory than the limit of %s", bytesOf(o.Limits.Memory))
	case o.DiskFull || noSpace(o.word()):
		return builder.Errorf(builder.KindDiskFull, o.op(), "it needed more disk than there is, or than the limit of %s", bytesOf(o.Limits.Disk))
	case o.commandFailed():
		return o.command()
	case o.ExitCode == killed:
		return builder.Errorf(builder.KindUnavailable, o.op(), "the build tool was killed from outside")
	}
	word := o.Log.last
	if cause, ok := strings.CutPrefix(word, "error checking push permissions: "); ok {
		return registryError("checking that the image may be pushed", cause, builder.KindPushDenied, builder.KindPushDenied)
	}
	if cause, ok := strings.CutPrefix(word, "error pushing image: "); ok {
		return registryError("pushing the image", cause, builder.KindPushDenied, builder.KindPushDenied)
	}
	if cause, ok := strings.CutPrefix(word, "error building image: "); ok {
		return buildError(cause)
	}
	return builder.Errorf(builder.KindUnavailable, "running the build tool", "exit code %d: %s", o.ExitCode, cmp.Or(word, "it did not say why"))
}

// op says what was being done.
func (o Outcome) op() string {
	if o.Log.step == "" {
		return "building"
	}
	return "running " + o.Log.Step()
}

// word is the executor's last word, whatever it is about.
func (o Outcome) word() string {
	if o.commandFailed() {
		return o.Log.failed
	}
	return o.Log.last
}

// commandFailed reports whether the log and the exit code allow that an instruction
// failed. A command that fails can print any other error of the executor, but cannot
// keep the executor from saying this one.
func (o Outcome) commandFailed() bool {
	switch o.ExitCode {
	case 0, killed:
		return false
	}
	return o.Log.exits[o.ExitCode] || (o.ExitCode > 2 && o.Log.phase >= PhaseStep)
}

func (o Outcome) command() error {
	kind := builder.KindCommandFailed
	if strings.Contains(o.Log.step, "/kiln/requirements.txt") && strings.Contains(o.Log.step, "pip") {
		kind = builder.KindRequirementsFailed
	}
	m := failure.FindStringSubmatch(o.Log.failed)
	switch {
	case o.ExitCode == signaled && m != nil && m[2] != "":
		return builder.Errorf(kind, o.op(), "it was ended by %s", m[2])
	case m != nil && m[1] == "" && m[2] == "":
		cause := strings.TrimPrefix(o.Log.failed, "error building image: error building stage: ")
		return builder.Errorf(builder.KindCommandFailed, o.op(), "%s", cause)
	}
	return builder.Errorf(kind, o.op(), "exit code %d", o.ExitCode)
}

// buildError is for what fails around the instructions.
func buildError(cause string) error {
	inStage := strings.TrimPrefix(cause, "error building stage: ")
	switch {
	case strings.HasPrefix(cause, "parsing dockerfile: "), strings.HasPrefix(cause, "failed to optimize instructions: "):
		return &builder.Error{Kind: builder.KindInvalidRequest, Op: "reading the Dockerfile", Err: errors.New(cause)}
	case strings.Contains(cause, "no child with platform"):
		return &builder.Error{Kind: builder.KindBaseNotFound, Op: "resolving the base image", Err: errors.New(cause)}
	case strings.HasPrefix(inStage, "failed to get filesystem from image: "):
		return registryError("unpacking the base image", inStage, builder.KindPullDenied, builder.KindBaseNotFound)
	case strings.HasPrefix(inStage, "failed to take snapshot: "):
		return &builder.Error{Kind: builder.KindUnavailable, Op: "collecting the files of a layer", Err: errors.New(inStage)}
	}
	if strings.HasPrefix(cause, "unable to complete operation after ") || answered(cause) != 0 {
		return registryError("resolving the base image", cause, builder.KindPullDenied, builder.KindBaseNotFound)
	}
	return &builder.Error{Kind: builder.KindUnavailable, Op: "building", Err: errors.New(cause)}
}

// registryError classifies by what the registry answered.
func registryError(op, cause string, denied, missing builder.Kind) error {
	kind := builder.KindUnavailable
	switch answered(cause) {
	case 401, 403:
		kind = denied
	case 404:
		kind = missing
	}
	return &builder.Error{Kind: kind, Op: op, Err: errors.New(cause)}
}

// bytesOf is a number of bytes for people.
func bytesOf(n int64) string {
	const mib = 1 << 20
	switch {
	case n == 0:
		return "this machine"
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", (n+mib-1)/mib)
}
