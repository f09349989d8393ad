package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"kiln/events"
)

// status of a build in the ledger.
type status string

const (
	statusBuilding  status = "building"
	statusCompleted status = "completed"
	// statusReleased is a build that nobody works on: it is to be tried again.
	statusReleased status = "released"
	// statusFailed is a build that ended for all who waited for it.
	statusFailed status = "failed"
)

// recordVersion is the format of records. Those without a version were written before
// there was one and are read as they are; a later one is not understood.
const recordVersion = 1

// versioned is the version that every record begins with.
type versioned struct {
	V int `json:"v"`
}

func (v *versioned) stamp()       { v.V = recordVersion }
func (v *versioned) version() int { return v.V }

// buildRecord is what the ledger knows of a build, under "build.<build_id>". Its
// revision is the fencing token of the claim.
type buildRecord struct {
	versioned
	Status    status    `json:"status"`
	Attempt   int       `json:"attempt"`
	Owner     string    `json:"owner,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// RequestID is the request that the build was or is made for.
	RequestID string    `json:"request_id"`
	ImageRef  string    `json:"image_ref,omitempty"`
	Digest    string    `json:"digest,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
	BuildMS   int64     `json:"build_ms,omitempty"`
	Code      string    `json:"code,omitempty"`
	// Failure is how a failed build ended, as build.failed says it, and LogTail the end
	// of its log.
	Failure *events.FailureCause `json:"failure,omitempty"`
	LogTail []string             `json:"log_tail,omitempty"`
	// Tries counts executions that broke for reasons of ours since the last result, and
	// Causes are their errors. Lost counts those whose worker went away without a word.
	Tries  int      `json:"tries,omitempty"`
	Lost   int      `json:"lost,omitempty"`
	Causes []string `json:"causes,omitempty"`
	// Class is the position in Config.Classes of the resources that it gets.
	Class int `json:"class,omitempty"`
}

// finished reports whether the record holds a result that ends requests.
func (r *buildRecord) finished() bool { return r.Status == statusCompleted || r.Status == statusFailed }

// end leaves the build to nobody.
func (r *buildRecord) end(s status) {
	r.Status, r.Owner, r.ExpiresAt, r.Finished = s, "", time.Time{}, time.Now().UTC()
}

// broke counts an execution that broke for reasons of ours.
func (r *buildRecord) broke(cause string) {
	r.Tries++
	r.Causes = lastN(append(slices.Clip(r.Causes), cause), maxCauses)
}

const buildPrefix = "build."

func buildKey(buildID string) string { return buildPrefix + buildID }

// requestRecord is what the ledger knows of a request, under "request.<hash of the
// id>". It exists once something about the request has to survive the process.
type requestRecord struct {
	versioned
	RequestID string `json:"request_id"`
	// Content is the SHA-256 of the request's data; it tells a repetition from a
	// different request under the same id.
	Content string `json:"content,omitempty"`
	// Tries counts tries that broke for reasons of ours; Causes are their errors.
	Tries  int      `json:"tries,omitempty"`
	Causes []string `json:"causes,omitempty"`
	// Started is when the request was first handled.
	Started time.Time `json:"started,omitzero"`
	// Terminal is the one terminal event, once it is decided.
	Terminal *terminal `json:"terminal,omitempty"`
	// Cancel is what asks to end the request, wherever it is.
	Cancel *cancelRecord `json:"cancel,omitempty"`
}

// cancelRecord is a build.cancel that came before its request was taken in. Requests
// that were published after it are not meant.
type cancelRecord struct {
	Sequence uint64 `json:"sequence"`
	Reason   string `json:"reason,omitempty"`
}

// cancels reports whether the request at the given position of the stream is canceled.
func (r requestRecord) cancels(sequence uint64) bool {
	return r.Cancel != nil && sequence < r.Cancel.Sequence
}

// canceledAt is the position of the newest cancel, 0 if there is none.
func (r requestRecord) canceledAt() uint64 {
	if r.Cancel == nil {
		return 0
	}
	return r.Cancel.Sequence
}

// tagRecord is what the ledger knows of a tag, under "tag.<hash of the reference>": the
// newest request that it was moved for.
type tagRecord struct {
	versioned
	Ref       string `json:"ref"`
	Sequence  uint64 `json:"sequence"`
	ImageRef  string `json:"image_ref"`
	Digest    string `json:"digest"`
	RequestID string `json:"request_id"`
	// RegistrySecret and Platform are what it takes to look at it again.
	RegistrySecret string `json:"registry_secret,omitempty"`
	Platform       string `json:"platform,omitempty"`
}

// terminal is a terminal event as it was decided, kept so that a repetition
// publishes the very same event.
type terminal struct {
	Type        events.Type     `json:"type"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Time        time.Time       `json:"time"`
	TraceParent string          `json:"traceparent,omitempty"`
	TraceState  string          `json:"tracestate,omitempty"`
	Data        json.RawMessage `json:"data"`
}

// requestKey hashes the id, which may hold characters that keys may not.
func requestKey(id string) string { return "request." + hash(id) }

const tagPrefix = "tag."

func tagKey(ref string) string { return tagPrefix + hash(ref) }

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func newTerminal(e events.Event) (*terminal, error) {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	return &terminal{
		Type: e.Type, ID: e.ID, Source: e.Source, Time: e.Time,
		TraceParent: e.TraceParent, TraceState: e.TraceState, Data: data,
	}, nil
}

func (t terminal) event() (events.Event, error) {
	e := events.Event{
		Type: t.Type, ID: t.ID, Source: t.Source, Time: t.Time,
		TraceParent: t.TraceParent, TraceState: t.TraceState,
	}
	switch t.Type {
	case events.TypeBuildCompleted:
		e.Data = &events.BuildCompleted{}
	case events.TypeBuildFailed:
		e.Data = &events.BuildFailed{}
	case events.TypeBuildCanceled:
		e.Data = &events.BuildCanceled{}
	default:
		return e, fmt.Errorf("ledger holds a terminal event of unknown type %q", t.Type)
	}
	if err := json.Unmarshal(t.Data, e.Data); err != nil {
		return e, fmt.Errorf("decode recorded %s: %w", t.Type, err)
	}
	return e, nil
}

// entry is a ledger value with the revision that the next write has to name.
type entry[T any] struct {
	key      string
	revision uint64
	value    T
}

// record is what the ledger holds, by pointer.
type record[T any] interface {
	*T
	stamp()
	version() int
}

// load reads a record; a missing key is an entry of revision 0.
func load[T any, P record[T]](ctx context.Context, l Store, key string) (entry[T], error) {
	e := entry[T]{key: key}
	raw, revision, err := l.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return e, nil
	}
	if err != nil {
		return e, fmt.Errorf("read ledger key %s: %w", key, err)
	}
	e.revision = revision
	e.value, err = decodeRecord[T, P](key, raw)
	return e, err
}

func decodeRecord[T any, P record[T]](key string, raw []byte) (value T, err error) {
	if err := json.Unmarshal(raw, &value); err != nil {
		return value, fmt.Errorf("decode ledger key %s: %w", key, err)
	}
	if v := P(&value).version(); v > recordVersion {
		return value, fmt.Errorf("ledger key %s has version %d; this worker reads up to %d", key, v, recordVersion)
	}
	return value, nil
}

// store writes the record if nobody else wrote since e was read.
func store[T any, P record[T]](ctx context.Context, l Store, e *entry[T], value T) error {
	P(&value).stamp()
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode ledger key %s: %w", e.key, err)
	}
	revision, err := Put(ctx, l, e.key, raw, e.revision)
	if err != nil {
		return fmt.Errorf("write ledger key %s: %w", e.key, err)
	}
	e.revision, e.value = revision, value
	return nil
}

// Put is Store.Put that recognises a write that succeeded but reported an error, by
// reading it back.
func Put(ctx context.Context, l Store, key string, raw []byte, revision uint64) (uint64, error) {
	next, err := l.Put(ctx, key, raw, revision)
	if err == nil {
		return next, nil
	}
	stored, at, getErr := l.Get(ctx, key)
	if getErr != nil || at <= revision || !bytes.Equal(stored, raw) {
		return 0, err
	}
	return at, nil
}
