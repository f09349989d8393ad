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

// Type returns the event type of a subject; ok is false when it is none of ours.
func (s Subjects) Type(subject string) (t Type, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix())
	if t = Type(rest); !ok || !slices.Contains(types(), t) {
		return "", false
	}
	return t, true
}

// types are all that there are.
func types() []Type {
	return []Type{
		TypeBuildRequested, TypeBuildQueued, TypeBuildStarted, TypeBuildCompleted, TypeBuildFailed, TypeBuildCanceled,
		TypeBuildCancel, TypeBuildDead,
	}
}

// EventID returns the id of an emitted event, which is its Nats-Msg-Id too: the
// same fact always has the same id. Only build.started happens once per attempt; all
// others have one id per request whatever the attempt.
func EventID(requestID string, t Type, attempt int) string {
	id := requestID + "." + string(t)
	if t != TypeBuildStarted {
		return id
	}
	return id + "." + strconv.Itoa(attempt)
}
