package natsbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors of Ledger, Backlog and Queue.
var (
	// ErrNotFound is returned when the key has no value, or the message is gone.
	ErrNotFound = errors.New("natsbus: not found")
	// ErrConflict is returned by Put and Delete when the key has another revision.
	ErrConflict = errors.New("natsbus: revision conflict")
)

// Ledger is the compare-and-set store of builds and requests. A Get is answered by
// the bucket's leader and sees every Put before it, as long as the bucket is the one
// that Provision makes: without direct reads. Safe for concurrent use.
type Ledger struct{ bucket }

// Ledger binds to the bucket. It fails if that was not provisioned.
func (b *Bus) Ledger(ctx context.Context) (*Ledger, error) {
	bound, err := b.bucket(ctx, b.topology.ledger(), 0)
	if err != nil {
		return nil, err
	}
	return &Ledger{bound}, nil
}

// Backlog is the compare-and-set store of accepted requests that are not finished, a
// Ledger in which deleted keys leave nothing behind. Safe for concurrent use.
type Backlog struct{ bucket }

// Backlog binds to the bucket. It fails if that was not provisioned.
func (b *Bus) Backlog(ctx context.Context) (*Backlog, error) {
	bound, err := b.bucket(ctx, b.topology.backlog(), markerTTL)
	if err != nil {
		return nil, err
	}
	return &Backlog{bound}, nil
}

// bucket is what Ledger and Backlog share.
type bucket struct {
	js   jetstream.JetStream
	kv   jetstream.KeyValue
	name string
	// markerTTL is how long the server remembers that a key was deleted; 0 is for as
	// long as it keeps any record.
	markerTTL time.Duration
}

func (b *Bus) bucket(ctx context.Context, name string, markerTTL time.Duration) (bucket, error) {
	kv, err := b.js.KeyValue(ctx, name)
	if err != nil {
		return bucket{}, missing("bucket "+name, err)
	}
	return bucket{js: b.js, kv: kv, name: name, markerTTL: markerTTL}, nil
}

// Get returns the value and its revision.
func (b *bucket) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	entry, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, ErrNotFound
	}
	if err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", key, err)
	}
	return entry.Value(), entry.Revision(), nil
}

// Put stores value if the key still has the given revision, 0 meaning that it has
// no value, and returns the new revision. A deleted key has no value. After any other
// error than ErrConflict the value may be stored all the same: read the key again.
// Even ErrConflict may be the echo of an own Put of which only the answer was lost,
// so that a caller compares the stored value with its own before it gives up.
func (b *bucket) Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	put := func() (uint64, error) { return b.kv.Update(ctx, key, value, revision) }
	if revision == 0 {
		put = func() (uint64, error) { return b.kv.Create(ctx, key, value) }
	}
	next, err := put()
	if isConflict(err) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("put %s: %w", key, err)
	}
	return next, nil
}

// Delete removes the key if it still has the given revision, else it returns
// ErrConflict, as for a key that has no value. Errors are as uncertain as those of Put:
// read the key again.
func (b *bucket) Delete(ctx context.Context, key string, revision uint64) error {
	if revision == 0 {
		return ErrConflict // no value has this revision, and to the server it is any
	}
	opts := []jetstream.KVDeleteOpt{jetstream.LastRevision(revision)}
	if b.markerTTL > 0 {
		opts = append(opts, jetstream.PurgeTTL(b.markerTTL))
	}
	err := b.kv.Purge(ctx, key, opts...)
	if isConflict(err) {
		return ErrConflict
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// JetStream's codes for a failed expectation on the last sequence.
const (
	codeWrongLastSequence         jetstream.ErrorCode = 10071
	codeWrongLastSequenceConstant jetstream.ErrorCode = 10164 // from replicated streams
)

func isConflict(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return true
	}
	answer, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (answer.ErrorCode == codeWrongLastSequence || answer.ErrorCode == codeWrongLastSequenceConstant)
}
