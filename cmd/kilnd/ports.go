package main

import (
	"context"
	"errors"
	"time"

	"kiln/builder/kube"
	"kiln/builder/sandbox"
	"kiln/events"
	"kiln/events/natsbus"
	"kiln/worker"
	"kiln/worker/backlog"
	"kiln/worker/trigger"
)

// queue adapts the transport to the worker's port.
type queue struct{ *natsbus.Queue }

// Next implements worker.Queue.
func (q queue) Next(ctx context.Context) (worker.Message, error) {
	d, err := q.Queue.Next(ctx)
	if d == nil {
		return nil, err
	}
	return d, err
}

// Read implements worker.Requests.
func (q queue) Read(ctx context.Context, sequence uint64) (events.Message, error) {
	m, err := q.Queue.Read(ctx, sequence)
	return m, workerError(err)
}

// store adapts the transport's errors to the worker's.
type store struct{ keyValue }

// keyValue is what the buckets of the transport have in common.
type keyValue interface {
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	Delete(ctx context.Context, key string, revision uint64) error
}

// Get implements worker.Store.
func (s store) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	value, revision, err = s.keyValue.Get(ctx, key)
	return value, revision, workerError(err)
}

// Put implements worker.Store.
func (s store) Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	next, err := s.keyValue.Put(ctx, key, value, revision)
	return next, workerError(err)
}

// Delete implements worker.Backlog and trigger.Runs.
func (s store) Delete(ctx context.Context, key string, revision uint64) error {
	return workerError(s.keyValue.Delete(ctx, key, revision))
}

// ledger is a worker.Ledger.
type ledger struct {
	store
	bucket *natsbus.Ledger
}

// Watch implements worker.Ledger.
func (l ledger) Watch(ctx context.Context, pattern string, visit func(backlog.Change) bool) error {
	return l.bucket.Watch(ctx, pattern, true, func(c natsbus.Change) bool { return visit(backlog.Change(c)) })
}

// unfinishedRequests is a worker.Backlog.
type unfinishedRequests struct {
	store
	bucket *natsbus.Backlog
}

// Watch implements worker.Backlog.
func (b unfinishedRequests) Watch(ctx context.Context, visit func(backlog.Change) bool) error {
	return b.bucket.Watch(ctx, func(c natsbus.Change) bool { return visit(backlog.Change(c)) })
}

// knownRuns is a trigger.Runs.
type knownRuns struct {
	store
	bucket *natsbus.Runs
}

// Watch implements trigger.Runs.
func (r knownRuns) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(backlog.Change) bool) error {
	return r.bucket.Watch(ctx, pattern, updatesOnly, func(c natsbus.Change) bool { return visit(backlog.Change(c)) })
}

// runLogs is a trigger.Logs.
type runLogs struct{ *natsbus.LogStore }

// Resume implements trigger.Logs.
func (l runLogs) Resume(key string, attempt int) trigger.Log { return l.LogStore.Resume(key, attempt) }

// stream adapts the transport to the worker's port.
type stream struct{ *natsbus.Bus }

// Scan implements worker.History.
func (s stream) Scan(ctx context.Context, types []events.Type, since time.Time, after uint64, visit func(events.Message) bool) error {
	return s.Bus.Scan(ctx, types, natsbus.Start{Sequence: after, Time: since}, visit)
}

func workerError(err error) error {
	switch {
	case errors.Is(err, natsbus.ErrNotFound):
		return worker.ErrNotFound
	case errors.Is(err, natsbus.ErrConflict):
		return worker.ErrConflict
	default:
		return err
	}
}

var (
	_ worker.Publisher = (*natsbus.Bus)(nil)
	_ worker.LogStore  = (*natsbus.LogStore)(nil)
	_ engine           = (*sandbox.Engine)(nil)
	_ engine           = (*kube.Engine)(nil)
)
