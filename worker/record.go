package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"kiln/events"
)

// status of a build in the ledger.
type status string

const (
	statusBuilding  status = "building"
	statusCompleted status = "completed"
	// statusReleased is a build that nobody works on: it failed or was handed back.
	statusReleased status = "released"
)

// buildRecord is what the ledger knows of a build, under "build.<build_id>". Its
// revision is the fencing token of the claim.
type buildRecord struct {
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
}

func buildKey(buildID string) string { return "build." + buildID }

// requestRecord is what the ledger knows of a request, under "request.<hash of the
// id>". It exists once something about the request has to survive the process.
type requestRecord struct {
	RequestID string `json:"request_id"`
	// Content is the SHA-256 of the request's data; it tells a repetition from a
	// different request under the same id.
	Content string `json:"content"`
	// Tries counts tries that broke for reasons of ours; Causes are their errors.
	Tries  int      `json:"tries,omitempty"`
	Causes []string `json:"causes,omitempty"`
	// Started is when the request was first handled.
	Started time.Time `json:"started,omitzero"`
	// Terminal is the one terminal event, once it is decided.
	Terminal *terminal `json:"terminal,omitempty"`
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
func requestKey(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "request." + hex.EncodeToString(sum[:])
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

// load reads a record; a missing key is an entry of revision 0.
func load[T any](ctx context.Context, l Ledger, key string) (entry[T], error) {
	e := entry[T]{key: key}
	raw, revision, err := l.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return e, nil
	}
	if err != nil {
		return e, fmt.Errorf("read ledger key %s: %w", key, err)
	}
	if err := json.Unmarshal(raw, &e.value); err != nil {
		return e, fmt.Errorf("decode ledger key %s: %w", key, err)
	}
	e.revision = revision
	return e, nil
}

// store writes the record if nobody else wrote since e was read. A write that
// succeeded but reported an error is recognised by reading it back.
func (e *entry[T]) store(ctx context.Context, l Ledger, value T) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode ledger key %s: %w", e.key, err)
	}
	revision, err := l.Put(ctx, e.key, raw, e.revision)
	if err != nil {
		stored, at, getErr := l.Get(ctx, e.key)
		if getErr != nil || at <= e.revision || !bytes.Equal(stored, raw) {
			return fmt.Errorf("write ledger key %s: %w", e.key, err)
		}
		revision = at
	}
	e.revision, e.value = revision, value
	return nil
}
