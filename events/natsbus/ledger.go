package natsbus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors of a Ledger.
var (
	// ErrNotFound is returned by Get when the key has no value.
	ErrNotFound = errors.New("ledger: key not found")
	// ErrConflict is returned by Put when the key has another revision.
	ErrConflict = errors.New("ledger: revision conflict")
)

// Ledger is the compare-and-set store of builds and requests. A Get is answered by
// the bucket's leader and sees every Put before it, as long as the bucket is the one
// that Provision makes: without direct reads. Safe for concurrent use.
type Ledger struct {
	kv jetstream.KeyValue
}

// Ledger binds to the bucket. It fails if that was not provisioned.
func (b *Bus) Ledger(ctx context.Context) (*Ledger, error) {
	kv, err := b.js.KeyValue(ctx, b.topology.ledger())
	if err != nil {
		return nil, missing("bucket "+b.topology.ledger(), err)
	}
	return &Ledger{kv: kv}, nil
}

// Get returns the value and its revision.
func (l *Ledger) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	entry, err := l.kv.Get(ctx, key)
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
func (l *Ledger) Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	put := func() (uint64, error) { return l.kv.Update(ctx, key, value, revision) }
	if revision == 0 {
		put = func() (uint64, error) { return l.kv.Create(ctx, key, value) }
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
