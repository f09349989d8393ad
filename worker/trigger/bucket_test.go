package trigger

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"kiln/events"
	"kiln/worker"
	"kiln/worker/backlog"
)

// bucket is a Runs in memory.
type bucket struct {
	mu      sync.Mutex
	values  map[string][]byte
	revs    map[string]uint64
	rev     uint64
	history []backlog.Change
	more    chan struct{}
}

func newBucket() *bucket {
	return &bucket{values: map[string][]byte{}, revs: map[string]uint64{}, more: make(chan struct{})}
}

func (b *bucket) changedNext() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.more
}

func (b *bucket) Get(_ context.Context, key string) ([]byte, uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.values[key]
	if !ok {
		return nil, 0, worker.ErrNotFound
	}
	return bytes.Clone(v), b.revs[key], nil
}

func (b *bucket) Put(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.revs[key] != revision {
		return 0, worker.ErrConflict
	}
	b.rev++
	b.values[key], b.revs[key] = bytes.Clone(value), b.rev
	b.changed(backlog.Change{Key: key, Value: bytes.Clone(value), Revision: b.rev})
	return b.rev, nil
}

func (b *bucket) Delete(_ context.Context, key string, revision uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if revision == 0 || b.revs[key] != revision {
		return worker.ErrConflict
	}
	b.rev++
	delete(b.values, key)
	delete(b.revs, key)
	b.changed(backlog.Change{Key: key, Deleted: true, Revision: b.rev})
	return nil
}

func (b *bucket) changed(c backlog.Change) {
	b.history = append(b.history, c)
	close(b.more)
	b.more = make(chan struct{})
}

func (b *bucket) keys(prefix string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(b.values)), func(k string) bool { return !strings.HasPrefix(k, prefix) })
}

// record returns what is stored of a run.
func (b *bucket) record(runID string) record {
	raw, revision, err := b.Get(context.Background(), runPrefix+events.RunKey(runID))
	if err != nil {
		return record{}
	}
	s, err := decode("x", raw, revision)
	if err != nil {
		panic(err)
	}
	return s.record
}

// Watch implements Runs.
func (b *bucket) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(backlog.Change) bool) error {
	prefix := strings.TrimSuffix(pattern, "*")
	b.mu.Lock()
	var first []backlog.Change
	for key, value := range b.values {
		if !updatesOnly && strings.HasPrefix(key, prefix) {
			first = append(first, backlog.Change{Key: key, Value: bytes.Clone(value), Revision: b.revs[key]})
		}
	}
	next := len(b.history)
	b.mu.Unlock()
	slices.SortFunc(first, func(a, b backlog.Change) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, c := range append(first, backlog.Change{Synced: true}) {
		if !visit(c) {
			return nil
		}
	}
	for {
		b.mu.Lock()
		changes, more := b.history[next:len(b.history):len(b.history)], b.more
		next = len(b.history)
		b.mu.Unlock()
		for _, c := range changes {
			if strings.HasPrefix(c.Key, prefix) && !visit(c) {
				return nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
