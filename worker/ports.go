package worker

import (
	"context"
	"errors"
	"io"
	"time"

	"kiln/builder/nuclio"
	"kiln/events"
)

// Queue hands out requests, one per call, and prefetches nothing.
type Queue interface {
	// Next blocks until a message is there or ctx ends (then ctx's error). Other
	// errors are temporary; the caller waits and calls again. Safe for concurrent use.
	Next(ctx context.Context) (Message, error)
}

// Message is one delivery of a request. Its methods are safe for concurrent use.
type Message interface {
	// Event is the message as it arrived.
	Event() events.Message
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

// Ledger is a compare-and-set store. Keys are [-/_=.a-zA-Z0-9]+.
type Ledger interface {
	// Get returns the value and its revision, or ErrNotFound.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	// Put stores value if the key's revision is still the given one (0: the key
	// does not exist) and returns the new revision, else ErrConflict.
	Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
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

// Errors of a Ledger.
var (
	// ErrNotFound is returned by Get when the key has no value.
	ErrNotFound = errors.New("ledger: key not found")
	// ErrConflict is returned by Put when somebody else wrote the key first.
	ErrConflict = errors.New("ledger: revision conflict")
)
