package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kiln/events"
	"kiln/worker"
)

// state of a run. A run goes through them in this order, and back from starting or
// running to ready only when a start broke for reasons of ours.
type state string

const (
	// stateNone is a run of which only the cancel has come so far.
	stateNone state = ""
	// stateWaiting is a run that waits for its image.
	stateWaiting state = "waiting"
	// stateReady is a run that has its image and waits for a slot.
	stateReady state = "ready"
	// stateStarting is a run that a trigger has claimed.
	stateStarting state = "starting"
	stateRunning  state = "running"
	stateEnded    state = "ended"
)

// recordVersion is the format of records; a later one is not understood.
const recordVersion = 1

// record is what is known of a run, under "run.<events.RunKey>". The key "open.<RunKey>"
// is there as long as something is to be done for the run.
type record struct {
	V     int    `json:"v"`
	RunID string `json:"run_id"`
	State state  `json:"state,omitempty"`
	// Sequence is the position of the request in its stream, Content the SHA-256 of its
	// data, which tells a repetition from a different request under the same id.
	Sequence  uint64          `json:"sequence,omitempty"`
	Content   string          `json:"content,omitempty"`
	Function  events.Function `json:"function,omitzero"`
	Name      string          `json:"name,omitempty"`
	Requested time.Time       `json:"requested,omitzero"`
	// Build is the id of the build.requested that the run waits for.
	Build   string         `json:"build,omitempty"`
	BuildID string         `json:"build_id,omitempty"`
	Outcome events.Outcome `json:"outcome,omitempty"`
	Image   string         `json:"image,omitempty"`
	Ready   time.Time      `json:"ready,omitzero"`
	// Source is the version of the code that is loaded at the start: every attempt has
	// the same.
	Source string `json:"source,omitempty"`
	// Attempt counts starts; it is the same when another trigger attaches.
	Attempt int    `json:"attempt,omitempty"`
	Owner   string `json:"owner,omitempty"`
	// Claim is what only the owner knows: together with the revision it fences.
	Claim  string `json:"claim,omitempty"`
	Place  string `json:"place,omitempty"`
	Runner string `json:"runner,omitempty"`
	// Expires is for people: who takes over goes by its own clock.
	Expires time.Time `json:"expires,omitzero"`
	Started time.Time `json:"started,omitzero"`
	// Tries counts starts that broke for reasons of ours, Causes are their errors.
	Tries     int       `json:"tries,omitempty"`
	Causes    []string  `json:"causes,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	// Cancel is what asks to end the run, wherever it is.
	Cancel *cancelRecord `json:"cancel,omitempty"`
	// Terminal is the one terminal event as it was decided, a CloudEvent.
	Terminal     json.RawMessage `json:"terminal,omitempty"`
	TerminalType events.Type     `json:"terminal_type,omitempty"`
	// Told is true once that event is out and only what is kept at Place is left to remove.
	Told        bool   `json:"told,omitempty"`
	TraceParent string `json:"traceparent,omitempty"`
	TraceState  string `json:"tracestate,omitempty"`
}

// cancelRecord is a run.cancel. Runs that were requested after it are not meant.
type cancelRecord struct {
	Sequence uint64 `json:"sequence"`
	Reason   string `json:"reason"`
}

func (r record) canceled() bool { return r.Cancel != nil && r.Sequence < r.Cancel.Sequence }

// free leaves the run to nobody.
func (r *record) free() {
	r.Owner, r.Claim, r.Expires = "", "", time.Time{}
}

// claimed reports whether a trigger has the run in hand, or had it when it died.
func (r record) claimed() bool { return r.State == stateStarting || r.State == stateRunning }

const (
	runPrefix  = "run."
	openPrefix = "open."
)

// buildRequest names the build that a run waits for. Nobody can know the name before the
// run is stored, and it leads back to the run's record.
func buildRequest(key string, sequence uint64) string {
	return runPrefix + key + "." + strconv.FormatUint(sequence, 10)
}

// runOf is the key of the run that a build was requested for; ok is false for builds of
// others.
func runOf(requestID string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(requestID, runPrefix)
	key, sequence, dotted := strings.Cut(rest, ".")
	if !ok || !dotted || sequence == "" || len(key) != 64 || strings.Trim(key, "0123456789abcdef") != "" || strings.Trim(sequence, "0123456789") != "" {
		return "", false
	}
	return key, true
}

// stored is a record with the revision that the next write has to name.
type stored struct {
	key      string
	revision uint64
	record
}

func decode(key string, raw []byte, revision uint64) (stored, error) {
	s := stored{key: key, revision: revision}
	if err := json.Unmarshal(raw, &s.record); err != nil {
		return s, fmt.Errorf("decode run %s: %w", key, err)
	}
	if s.V > recordVersion {
		return s, fmt.Errorf("the record of run %s has version %d; this trigger reads up to %d", key, s.V, recordVersion)
	}
	return s, nil
}

// load reads a run's record; one that is not there has revision 0.
func (t *Trigger) load(ctx context.Context, key string) (stored, error) {
	raw, revision, err := t.deps.Runs.Get(ctx, runPrefix+key)
	if errors.Is(err, worker.ErrNotFound) {
		return stored{key: key}, nil
	}
	if err != nil {
		return stored{key: key}, fmt.Errorf("read run %s: %w", key, err)
	}
	return decode(key, raw, revision)
}

// save writes the record if nobody else wrote since s was read, and notes it in the view.
func (t *Trigger) save(ctx context.Context, s *stored, next record) error {
	next.V = recordVersion
	raw, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode run %s: %w", s.key, err)
	}
	revision, err := worker.Put(ctx, t.deps.Runs, runPrefix+s.key, raw, s.revision)
	if err != nil {
		return fmt.Errorf("write run %s: %w", s.key, err)
	}
	s.revision, s.record = revision, next
	t.observe(*s)
	return nil
}

// open marks the run as one for which something is to be done.
func (t *Trigger) open(ctx context.Context, key string) error {
	_, err := worker.Put(ctx, t.deps.Runs, openPrefix+key, []byte("{}"), 0)
	if err != nil && !errors.Is(err, worker.ErrConflict) {
		return fmt.Errorf("open run %s: %w", key, err)
	}
	return nil
}

// close takes the mark away.
func (t *Trigger) close(ctx context.Context, key string) error {
	for {
		_, revision, err := t.deps.Runs.Get(ctx, openPrefix+key)
		if errors.Is(err, worker.ErrNotFound) {
			break
		}
		if err == nil {
			err = t.deps.Runs.Delete(ctx, openPrefix+key, revision)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, worker.ErrConflict) {
			return fmt.Errorf("close run %s: %w", key, err)
		}
	}
	t.vanished(key)
	return nil
}
