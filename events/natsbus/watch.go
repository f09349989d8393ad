package natsbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Change is what happened to one key, or that everything stored was shown.
type Change struct {
	Key      string
	Value    []byte
	Revision uint64
	// Deleted is true when the key has no value any more: it was deleted, or was too
	// old. Revision is 0 then if nobody can tell when.
	Deleted bool
	// Synced is true of exactly one change, which has no key: all values that were
	// stored have been shown, and what comes later happened later.
	Synced bool
}

// Watch shows what is in the backlog, oldest change first and deleted keys left out, then
// one change that is Synced, then what changes, until visit returns false or ctx ends
// (then with ctx's error). A key that changes twice while the watch is behind is shown
// once, with its newest value; no revision is shown twice. It survives reconnects and
// restarts of the server and misses no deletion meanwhile. Visit is called from one
// goroutine. One watch is one consumer at the server.
func (b *Backlog) Watch(ctx context.Context, visit func(Change) bool) error {
	return b.watch(ctx, ">", false, visit)
}

// Watch is Backlog.Watch of the keys that match pattern, a NATS subject with wildcards
// ("build.*"). With updatesOnly what is stored already is left out, and Synced comes
// first: a Get after it and the changes together miss nothing.
func (l *Ledger) Watch(ctx context.Context, pattern string, updatesOnly bool, visit func(Change) bool) error {
	return l.watch(ctx, pattern, updatesOnly, visit)
}

func (b *bucket) watch(ctx context.Context, pattern string, updatesOnly bool, visit func(Change) bool) error {
	prefix := "$KV." + b.name + "."
	w := watch{
		reader: reader{js: b.js, stream: bucketStream(b.name), subjects: []string{prefix + pattern}, follow: true},
		prefix: prefix, markerTTL: b.markerTTL, updatesOnly: updatesOnly, visit: visit, live: map[string]uint64{},
	}
	w.reader.position = w.position
	return w.reader.run(ctx, func(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		return w.message(msg, meta) && (w.reader.last < w.reader.goal || w.caughtUp(ctx))
	})
}

// watch is a reader of a bucket, in which a key has one message, its newest.
type watch struct {
	reader      reader
	prefix      string
	markerTTL   time.Duration
	updatesOnly bool
	visit       func(Change) bool

	stream jetstream.Stream
	// created tells one stream from another of the same name.
	created time.Time
	synced  bool
	// live has the revision of each key that was shown with a value; nothing for
	// updatesOnly, which knows no state.
	live map[string]uint64
	// again has the keys that were met since the bucket is read once more; nil when it
	// is not.
	again map[string]bool
}

// position decides where the next consumer begins: at the start of the bucket, after
// what was visited, or at the start again if what was visited does not say what is
// there now, because markers are gone or the server has lost or replaced the bucket.
func (w *watch) position(ctx context.Context) (done bool, err error) {
	if w.stream, err = w.reader.js.Stream(ctx, w.reader.stream); err != nil {
		return false, fmt.Errorf("look at the bucket: %w", err)
	}
	info := w.stream.CachedInfo()
	switch {
	case w.created.IsZero() && w.updatesOnly:
		w.reader.last = info.State.LastSeq
	case w.created.IsZero():
	case !info.Created.Equal(w.created), info.State.LastSeq < w.reader.last,
		w.again != nil, w.markerTTL > 0 && time.Since(w.reader.asked) > w.markerTTL/2:
		w.reader.last, w.again = 0, map[string]bool{}
	}
	w.created = info.Created
	return !w.caughtUp(ctx), nil
}

// message shows what one message says, unless that is known.
func (w *watch) message(msg jetstream.Msg, meta *jetstream.MsgMetadata) bool {
	change := Change{Key: strings.TrimPrefix(msg.Subject(), w.prefix), Revision: meta.Sequence.Stream}
	if w.again != nil {
		w.again[change.Key] = true
	}
	known, shown := w.live[change.Key]
	if isMarker(msg) {
		if !shown && !w.updatesOnly {
			return true // nobody was shown a value
		}
		delete(w.live, change.Key)
		change.Deleted = true
		return w.visit(change)
	}
	if shown && known == change.Revision {
		return true
	}
	if !w.updatesOnly {
		w.live[change.Key] = change.Revision
	}
	change.Value = msg.Data()
	return w.visit(change)
}

// isMarker tells the message that says that a key has no value from those with one:
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md and
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-48.md.
func isMarker(msg jetstream.Msg) bool {
	return msg.Headers().Get("KV-Operation") != "" || msg.Headers().Get(jetstream.MarkerReasonHeader) != ""
}

// caughtUp is called when the goal is reached. It asks the bucket's leader for the newest
// change, which is the next goal: only when there is none that was not visited, what was
// shown is what there is. The count of pending messages that comes with each of them
// cannot tell, since the server keeps it up to date with a delay.
func (w *watch) caughtUp(ctx context.Context) bool {
	switch {
	case w.synced && w.again == nil:
		return true
	case w.updatesOnly:
		w.again = nil
		return w.synced || w.showSynced()
	}
	w.reader.goal = 0
	newest, err := w.stream.GetLastMsgForSubject(ctx, w.reader.subjects[0])
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
	case err != nil:
		w.reader.goal = w.reader.last + 1 // look again, soon
		return true
	case newest.Sequence > w.reader.last:
		w.reader.goal = newest.Sequence
		return true
	}
	return w.showVanished() && (w.synced || w.showSynced())
}

func (w *watch) showSynced() bool {
	w.synced = true
	return w.visit(Change{Synced: true})
}

// showVanished shows the deletion of keys that were not met when the bucket was read again.
func (w *watch) showVanished() bool {
	again := w.again
	w.again = nil
	for key := range w.live {
		if again == nil || again[key] {
			continue
		}
		delete(w.live, key)
		if !w.visit(Change{Key: key, Deleted: true}) {
			return false
		}
	}
	return true
}
