package events

import (
	"slices"
	"strconv"
	"strings"
)

// Subjects names the subjects of one Kiln. With a prefix several share a server.
type Subjects struct {
	// Prefix stands before every subject ("acme" gives "acme.build.requested").
	Prefix string
}

func (s Subjects) prefix() string {
	if s.Prefix == "" {
		return ""
	}
	return strings.TrimSuffix(s.Prefix, ".") + "."
}

// Of returns the subject of an event type.
func (s Subjects) Of(t Type) string { return s.prefix() + string(t) }

// AllBuilds matches every build event.
func (s Subjects) AllBuilds() string { return s.prefix() + "build.*" }

// Log returns the subject of a build's log.
func (s Subjects) Log(buildID string) string { return s.prefix() + "build.log." + buildID }

// AllLogs matches every build's log.
func (s Subjects) AllLogs() string { return s.prefix() + "build.log.*" }

// AllRuns matches every run event.
func (s Subjects) AllRuns() string { return s.prefix() + "run.*" }

// RunLog returns the subject of a run's log, by its RunKey.
func (s Subjects) RunLog(key string) string { return s.prefix() + "run.log." + key }

// AllRunLogs matches every run's log.
func (s Subjects) AllRunLogs() string { return s.prefix() + "run.log.*" }

// Type returns the event type of a subject; ok is false when it is none of ours.
func (s Subjects) Type(subject string) (t Type, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix())
	if t = Type(rest); !ok || !slices.Contains(Types(), t) {
		return "", false
	}
	return t, true
}

// Types returns all types of events.
func Types() []Type { return append(BuildTypes(), RunTypes()...) }

// RunTypes returns the types of events about runs.
func RunTypes() []Type {
	return []Type{
		TypeRunRequested, TypeRunWaiting, TypeRunStarted, TypeRunCompleted, TypeRunFailed, TypeRunCanceled, TypeRunCancel,
	}
}

// BuildTypes returns the types of events about builds.
func BuildTypes() []Type {
	return []Type{
		TypeBuildRequested, TypeBuildQueued, TypeBuildStarted, TypeBuildCompleted, TypeBuildFailed, TypeBuildCanceled,
		TypeBuildCancel, TypeBuildDead,
	}
}

// EventID returns the id of an emitted event, which is its Nats-Msg-Id too: the
// same fact always has the same id. Only build.started and run.started happen once per
// attempt; all others have one id per request or run whatever the attempt.
func EventID(requestID string, t Type, attempt int) string {
	id := requestID + "." + string(t)
	if t != TypeBuildStarted && t != TypeRunStarted {
		return id
	}
	return id + "." + strconv.Itoa(attempt)
}
