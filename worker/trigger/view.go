package trigger

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"kiln/worker"
	"kiln/worker/backlog"
)

// sighting is an open run as this trigger knows it.
type sighting struct {
	stored
	// since is when this revision was seen first, by the own clock.
	since time.Time
}

// observe notes a record that was read, written or heard of. Older revisions than the
// known one are stale news.
func (t *Trigger) observe(s stored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.view[s.key]
	if s.revision == 0 || s.State == stateNone || known != nil && known.revision >= s.revision {
		return
	}
	t.view[s.key] = &sighting{stored: s, since: time.Now()}
	if x := t.executions[s.key]; x != nil {
		x.alert(s)
	}
	t.wake()
}

// vanished notes that nothing is to be done for a run any more.
func (t *Trigger) vanished(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.view, key)
	delete(t.opened, key)
}

// known returns a run as the view has it.
func (t *Trigger) known(key string) (stored, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.view[key]
	if s == nil {
		return stored{}, false
	}
	return s.stored, true
}

// moving lists the runs of the view that do not wait for their image, in the order in
// which they were requested, and counts all by state. The caller has t.mu.
func (t *Trigger) moving() (all []*sighting, counts map[state]int) {
	counts = map[state]int{}
	for _, s := range t.view {
		if counts[s.State]++; s.State != stateWaiting {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *sighting) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return all, counts
}

// watchRuns notes what happens to runs until ctx ends.
func (t *Trigger) watchRuns(ctx context.Context) {
	t.keepWatching(ctx, "runs", func() error {
		return t.deps.Runs.Watch(ctx, runPrefix+"*", true, func(c backlog.Change) bool {
			switch {
			case c.Synced:
				t.listeningOnce.Do(func() { close(t.listening) })
			case !c.Deleted:
				t.heard(c)
			}
			return true
		})
	})
}

func (t *Trigger) heard(c backlog.Change) {
	s, err := decode(strings.TrimPrefix(c.Key, runPrefix), c.Value, c.Revision)
	if err != nil {
		t.deps.Log.Error().Err(err).Msg("the record of a run cannot be read")
		return
	}
	if s.State == stateEnded {
		// Whoever ended it finishes it; until it is closed it stays in the view, if it is
		// there.
		if _, open := t.known(s.key); !open {
			return
		}
	}
	t.observe(s)
}

// watchOpen finds the runs that are open, after changes of runs are listened to: so no
// change is missed.
func (t *Trigger) watchOpen(ctx context.Context) {
	select {
	case <-t.listening:
	case <-ctx.Done():
		return
	}
	t.keepWatching(ctx, "open runs", func() error {
		synced := false
		return t.deps.Runs.Watch(ctx, openPrefix+"*", false, func(c backlog.Change) bool {
			key := strings.TrimPrefix(c.Key, openPrefix)
			switch {
			case c.Synced:
				synced = true
				t.syncedOnce.Do(func() { close(t.synced) })
				t.wake()
			case c.Deleted:
				t.vanished(key)
			default:
				t.mu.Lock()
				t.opened[key] = time.Now()
				t.mu.Unlock()
				if !synced {
					t.look(ctx, key) // later ones are heard of
				}
			}
			return true
		})
	})
}

// look reads a run's record into the view.
func (t *Trigger) look(ctx context.Context, key string) {
	s, err := t.load(ctx, key)
	if err != nil {
		t.deps.Log.Warn().Err(err).Msg("cannot look at a run")
		return
	}
	t.observe(s)
}

func (t *Trigger) keepWatching(ctx context.Context, what string, watch func() error) {
	worker.KeepWatching(ctx, func(err error, retryIn time.Duration) {
		t.deps.Metrics.errors.WithLabelValues("watch").Inc()
		t.deps.Log.Warn().Err(err).Str("watch", what).Dur("retry_in", retryIn).Msg("cannot watch")
	}, watch)
}

// wake makes the dispatcher look at the view.
func (t *Trigger) wake() {
	select {
	case t.woken <- struct{}{}:
	default:
	}
}
