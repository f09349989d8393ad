package worker

import (
	"context"
	"strings"
	"time"

	"kiln/worker/backlog"
)

// look returns the revision of an entry as the view has it.
func (w *Worker) look(sequence uint64) (revision uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, revision, ok = w.view.Get(sequence)
	return revision, ok
}

// dropped notes that this worker deleted an entry.
func (w *Worker) dropped(sequence, revision uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view.Delete(sequence, revision)
}

// write puts an entry and notes it. The revision is that of the entry that it replaces.
func (w *Worker) write(ctx context.Context, e backlog.Entry, revision uint64) (uint64, error) {
	raw, err := e.Encode()
	if err != nil {
		return 0, err
	}
	next, err := Put(ctx, w.deps.Backlog, backlog.Key(e.Sequence), raw, revision)
	if err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view.Put(e, next, time.Now())
	return next, nil
}

// observeBuild notes a build's record that this worker read or wrote.
func (w *Worker) observeBuild(r entry[buildRecord]) {
	if r.revision == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.record(strings.TrimPrefix(r.key, buildPrefix), r.value, r.revision)
}

func (w *Worker) record(buildID string, r buildRecord, revision uint64) {
	status, took := backlog.Free, time.Duration(0)
	switch r.Status {
	case statusBuilding:
		status = backlog.Live
	case statusCompleted:
		status, took = backlog.Done, time.Duration(r.BuildMS)*time.Millisecond
	case statusFailed:
		status = backlog.Done
	case statusReleased:
	}
	w.view.Record(buildID, revision, status, took, time.Now())
}

// watchBacklog keeps the view up to date until ctx ends.
func (w *Worker) watchBacklog(ctx context.Context) {
	w.keepWatching(ctx, "backlog", func() error {
		w.mu.Lock()
		w.view.Begin()
		w.mu.Unlock()
		return w.deps.Backlog.Watch(ctx, func(c backlog.Change) bool {
			w.mu.Lock()
			err := w.view.Watch(c, time.Now())
			if c.Deleted {
				w.orphan(ctx, c)
			}
			w.expect(ctx, c)
			if c.Synced && !w.drained {
				w.jobs.Go(func() { w.peek(ctx) })
			}
			close(w.watched)
			w.watched = make(chan struct{})
			w.mu.Unlock()
			if err != nil {
				w.deps.Log.Error().Err(err).Str("key", c.Key).Msg("an entry of the backlog cannot be read")
			}
			if c.Synced {
				w.syncedOnce.Do(func() { close(w.synced) })
			}
			w.wake()
			return true
		})
	})
}

// peek reads the records of the builds that run when a watch begins: from here on this
// worker knows whether they change.
func (w *Worker) peek(ctx context.Context) {
	w.mu.Lock()
	running := w.view.Running()
	w.mu.Unlock()
	for _, e := range running {
		record, err := load[buildRecord](ctx, w.deps.Ledger, buildKey(e.BuildID))
		if err != nil {
			continue // it takes a lease longer to find out
		}
		w.observeBuild(record)
	}
}

// watchBuilds notes what other workers do until ctx ends.
func (w *Worker) watchBuilds(ctx context.Context) {
	w.keepWatching(ctx, "builds", func() error {
		return w.deps.Ledger.Watch(ctx, buildPrefix+"*", func(c backlog.Change) bool {
			if c.Deleted || c.Synced {
				return true
			}
			r, err := decodeRecord[buildRecord](c.Key, c.Value)
			if err != nil {
				w.deps.Log.Error().Err(err).Msg("a build's record cannot be read")
				return true
			}
			w.observeBuild(entry[buildRecord]{key: c.Key, revision: c.Revision, value: r})
			w.wake()
			return true
		})
	})
}

// keepWatching is KeepWatching, logged.
func (w *Worker) keepWatching(ctx context.Context, what string, watch func() error) {
	KeepWatching(ctx, func(err error, retryIn time.Duration) {
		w.deps.Log.Warn().Err(err).Str("watch", what).Dur("retry_in", retryIn).Msg("cannot watch")
	}, watch)
}

// wake makes the dispatcher look at the view.
func (w *Worker) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// Waiting is how many requests wait in the backlog, as far as this worker knows.
func (w *Worker) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view.Waiting()
}
