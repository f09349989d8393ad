// Package backlog knows the requests that were accepted and are not finished, as one
// worker sees them, and chooses what is built next. It is pure: it folds changes of the
// backlog and of builds into a View and reads no clock.
package backlog

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kiln/events"
)

// State of an entry.
type State string

// States. An entry that waits may share a build that runs: whether it does follows from
// the other entries of its build.
const (
	Waiting State = "waiting"
	Running State = "running"
)

// version of the format; entries of a later one are not understood.
const version = 1

// Entry is what the backlog holds of a request, under Key(Sequence). It has all that is
// needed to end the request once its build is finished.
type Entry struct {
	V         int    `json:"v"`
	RequestID string `json:"request_id"`
	// Content is the SHA-256 of the request's data.
	Content string `json:"content"`
	// Sequence is the position of the request in its stream.
	Sequence uint64 `json:"sequence"`
	BuildID  string `json:"build_id"`
	Project  string `json:"project"`
	Function string `json:"function"`
	Tag      string `json:"tag"`
	// Image is the target as the user named it, Target in full.
	Image  string `json:"image"`
	Target string `json:"target"`
	// Destination is what the executor would push for this request.
	Destination string `json:"destination"`
	// RegistrySecret names the credentials that the function asks for.
	RegistrySecret string      `json:"registry_secret,omitempty"`
	Base           events.Base `json:"base,omitzero"`
	Engine         string      `json:"engine"`
	// Reason is a sentence: why a build is needed.
	Reason    string          `json:"reason"`
	Priority  events.Priority `json:"priority,omitempty"`
	Supersede bool            `json:"supersede,omitempty"`
	Rebuild   bool            `json:"rebuild,omitempty"`
	// Worker took the request in.
	Worker string `json:"worker"`
	// Requested is when the request was stored, Accepted when the entry was made.
	Requested time.Time `json:"requested"`
	Accepted  time.Time `json:"accepted"`
	// Seen is the revision of the build's record when the entry was made; only a result
	// that is newer ends the request.
	Seen  uint64 `json:"seen,omitempty"`
	State State  `json:"state"`
	// Owner runs the build, or is about to.
	Owner string `json:"owner,omitempty"`
	// NotBefore is when the build may be tried again.
	NotBefore   time.Time `json:"not_before,omitzero"`
	TraceParent string    `json:"traceparent,omitempty"`
	TraceState  string    `json:"tracestate,omitempty"`
}

// Change is one change of a watched bucket. After the last value of the snapshot there
// is one with nothing but Synced.
type Change struct {
	Key      string
	Value    []byte
	Revision uint64
	Deleted  bool
	Synced   bool
}

const keyPrefix = "request."

// Key of the entry for the request at the given position of its stream.
func Key(sequence uint64) string { return keyPrefix + strconv.FormatUint(sequence, 10) }

// Sequence reads a key; ok is false for a key that is none of an entry.
func Sequence(key string) (sequence uint64, ok bool) {
	digits, found := strings.CutPrefix(key, keyPrefix)
	sequence, err := strconv.ParseUint(digits, 10, 64)
	return sequence, found && err == nil
}

// Encode returns the entry as it is stored.
func (e Entry) Encode() ([]byte, error) {
	e.V = version
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode the entry of %s: %w", e.RequestID, err)
	}
	return raw, nil
}

// Decode reads a stored entry.
func Decode(raw []byte) (Entry, error) {
	var e Entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("decode an entry of the backlog: %w", err)
	}
	if e.V > version {
		return e, fmt.Errorf("entry of the backlog has version %d; this worker reads up to %d", e.V, version)
	}
	return e, nil
}

// function names what a tag of a function is built for.
func (e Entry) function() string { return e.Project + "\x00" + e.Function + "\x00" + e.Tag }

// class is the position of the entry's priority, most urgent first.
func (e Entry) class() int {
	switch e.Priority {
	case events.PriorityInteractive:
		return 0
	case events.PriorityBulk:
		return 2
	default:
		return 1
	}
}

const classes = 3
