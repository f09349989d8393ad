package worker

import (
	"context"
	"errors"
	"io"
	"time"

	"kiln/builder/nuclio"
	"kiln/events"
	"kiln/worker/backlog"
)

// Queue hands out requests, one per call, and prefetches nothing.
type Queue interface {
	// Next blocks until a message is there or ctx ends (then ctx's error). Other
	// errors are temporary; the caller waits and calls again. Safe for concurrent use.
	Next(ctx context.Context) (Message, error)
}

// Requests is the queue of build.requested.
type Requests interface {
	Queue
	// Read returns the stored request at a position of the stream, as a delivery shows
	// it, or ErrNotFound when it is kept no longer.
	Read(ctx context.Context, sequence uint64) (events.Message, error)
}

// Message is one delivery of a message. Its methods are safe for concurrent use.
type Message interface {
	// Event is the message as it arrived.
	Event() events.Message
	// Sequence is its position in the stream.
	Sequence() uint64
	// InProgress resets the redelivery timer.
	InProgress(ctx context.Context) error
	// Ack ends the message and waits for the server's confirmation.
	Ack(ctx context.Context) error
	// Nak asks for a redelivery after delay (0: at once).
	Nak(ctx context.Context, delay time.Duration) error
}

// Publisher emits events.
type Publisher interface {
	// Publish stores the event. The event's ID makes a repeated publish harmless
	// within the stream's duplicate window.
	Publish(ctx context.Context, e events.Event) error
	// Published reports whether an event with this type and id was stored since
	// the given time; it makes a repeated publish harmless after the window.
	Published(ctx context.Context, t events.Type, id string, since time.Time) (bool, error)
}

// History reads what the stream holds.
type History interface {
	// Scan calls visit for the stored messages of the given types, oldest first, from the
	// position after on, or if that is 0 from the time since on, up to the newest one at
	// the time of the call, until visit returns false.
	Scan(ctx context.Context, types []events.Type, since time.Time, after uint64, visit func(events.Message) bool) error
}

// Store is a compare-and-set store. Keys are [-/_=.a-zA-Z0-9]+.
type Store interface {
	// Get returns the value and its revision, or ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	// Put stores value if the key's revision is still the given one (0: the key
	// does not exist) and returns the new revision, else ErrConflict.
	Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
}

// Ledger keeps what is known of builds, requests and tags.
type Ledger interface {
	Store
	// Watch calls visit for every change of the keys that match pattern ("build.*") from
	// now on, in order, until ctx ends (then with ctx's error) or visit returns false.
	// It survives reconnects.
	Watch(ctx context.Context, pattern string, visit func(backlog.Change) bool) error
}

// Backlog keeps the requests that are not finished.
type Backlog interface {
	Store
	// Delete removes the key if its revision is still the given one, else ErrConflict.
	Delete(ctx context.Context, key string, revision uint64) error
	// Watch calls visit for every key there is, then with Synced, then for every change,
	// in order, until ctx ends (then with ctx's error) or visit returns false. It
	// survives reconnects. After an error it begins anew.
	Watch(ctx context.Context, visit func(backlog.Change) bool) error
}

// LogStore keeps build logs.
type LogStore interface {
	// Open returns a writer for the log of one attempt. Writes are whole lines.
	// Close flushes and marks the end of the attempt's log.
	Open(buildID string, attempt int) io.WriteCloser
}

// Nuclio builds and deploys functions that are not built here.
type Nuclio interface {
	// Deploy brings the function to Nuclio for the request, once however often it is
	// called, and returns how far Nuclio is; it does not wait for the end. The status
	// holds Nuclio's log also with an error. Errors are *builder.Error. Safe for
	// concurrent use.
	Deploy(ctx context.Context, requestID string, f nuclio.Function) (nuclio.Status, error)
}

// Errors of a Store.
var (
	// ErrNotFound is returned by Get when the key has no value.
	ErrNotFound = errors.New("key not found")
	// ErrConflict is returned by Put and Delete when somebody else wrote the key first.
	ErrConflict = errors.New("revision conflict")
)
