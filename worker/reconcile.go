package worker

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// Kinds of repairs, as the metric names them.
const (
	repairRequest = "request" // a request without an outcome was handled again
	repairEntry   = "entry"   // a finished request was left in the backlog
	repairTag     = "tag"     // a tag was not where its newest request moved it
	repairClaim   = "claim"   // a build without a request was still claimed
)

const reconcilerKey = "reconciler"

// reconcilerRecord is who looks after what others left, under "reconciler".
type reconcilerRecord struct {
	versioned
	Owner string    `json:"owner"`
	Round int       `json:"round"`
	At    time.Time `json:"at"`
}

// reconciler finds what no worker would come to: it compares the stream's requests with
// its outcomes, and tags with their records. At most one worker does so at a time, which
// is for economy only: every repair may be made any number of times.
type reconciler struct {
	w *Worker
	// next is the position in the stream to read from; 0 at first.
	next uint64
	// open are the requests without an outcome, by position; byID finds them.
	open map[uint64]openRequest
	byID map[string][]uint64
	// ended are the ids of requests whose outcome was read in the last two rounds.
	ended, before map[string]bool

	mu sync.Mutex
	// tags are those that were moved lately.
	tags map[string]movedTag

	seen   uint64
	silent int
}

type openRequest struct {
	id     string
	stored time.Time
	raw    events.Message
}

type movedTag struct {
	record tagRecord
	at     time.Time
}

// reconcile repairs until ctx ends.
func (w *Worker) reconcile(ctx, work context.Context) {
	r := &reconciler{w: w, open: map[uint64]openRequest{}, byID: map[string][]uint64{}, ended: map[string]bool{}, tags: map[string]movedTag{}}
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		w.keepWatching(ctx, "tags", func() error { return w.deps.Ledger.Watch(ctx, tagPrefix+"*", r.tagged) })
	})
	for ctx.Err() == nil {
		Sleep(ctx, Jitter(w.cfg.Reconcile))
		if ctx.Err() != nil || !r.leads(ctx) {
			continue
		}
		if err := r.round(ctx, work); err != nil && ctx.Err() == nil {
			w.deps.Log.Warn().Err(err).Msg("cannot look after requests")
		}
	}
}

// leads renews the lease on the reconciler, or takes it from an owner that did not renew
// it for three rounds of this worker.
func (r *reconciler) leads(ctx context.Context) bool {
	record, err := load[reconcilerRecord](ctx, r.w.deps.Ledger, reconcilerKey)
	if err != nil {
		return false
	}
	if record.revision != 0 && record.value.Owner != r.w.cfg.Name {
		if r.silent++; record.revision != r.seen {
			r.seen, r.silent = record.revision, 0
		}
		if r.silent < 3 {
			return false
		}
	}
	next := reconcilerRecord{Owner: r.w.cfg.Name, Round: record.value.Round + 1, At: time.Now().UTC()}
	return store(ctx, r.w.deps.Ledger, &record, next) == nil
}

func (r *reconciler) round(ctx, work context.Context) error {
	if err := r.read(ctx); err != nil {
		return err
	}
	now := time.Now()
	for sequence, o := range r.open {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if now.Sub(o.stored) > r.w.cfg.Grace && r.request(work, sequence, o) {
			r.close(sequence, o.id)
		}
	}
	for id := range r.before {
		r.entries(work, id, now)
	}
	r.before, r.ended = r.ended, map[string]bool{}
	r.claims(work)
	r.moved(work, now)
	return nil
}

// read folds what the stream got since the last round.
func (r *reconciler) read(ctx context.Context) error {
	types := []events.Type{events.TypeBuildRequested, events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled}
	return r.w.deps.History.Scan(ctx, types, time.Now().Add(-r.w.cfg.Lookback), r.next, func(m events.Message) bool {
		sequence := sequenceOf(m)
		r.next = max(r.next, sequence+1)
		e, err := events.Decode(m)
		if e.Type == events.TypeBuildRequested {
			r.open[sequence] = openRequest{id: e.ID, stored: m.Time, raw: m}
			r.byID[e.ID] = append(r.byID[e.ID], sequence)
			return true
		}
		if err != nil {
			return true // not one of ours
		}
		id := strings.TrimSuffix(e.ID, "."+string(e.Type))
		r.ended[id] = true
		for _, s := range append(r.byID[id], sequenceOf(events.Message{FallbackID: id})) {
			r.close(s, id)
		}
		return true
	})
}

func (r *reconciler) close(sequence uint64, id string) {
	delete(r.open, sequence)
	delete(r.byID, id)
}

// sequenceOf reads the position of a message in its stream, 0 if it names none.
func sequenceOf(m events.Message) uint64 {
	_, digits, _ := strings.Cut(strings.TrimPrefix(m.FallbackID, "seq:"), ":")
	sequence, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0
	}
	return sequence
}

// request handles a request once more that has no outcome and that nobody has in hand.
// It reports whether there is nothing more to do about it.
func (r *reconciler) request(ctx context.Context, sequence uint64, o openRequest) bool {
	if _, waiting := r.w.look(sequence); waiting {
		return false
	}
	t := r.w.newTask(o.raw, sequence)
	if err := r.w.recall(ctx, t); err != nil {
		return false
	}
	switch {
	case t.record.value.Terminal != nil:
		_, v := r.w.ended(ctx, t)
		return v.answer == answerAck
	case t.record.value.Content != "" && time.Since(o.stored) < 10*r.w.cfg.Grace:
		return false // it is tried again, or waits for Nuclio
	}
	r.repaired(repairRequest, o.id)
	v := r.w.handle(ctx, t)
	return v.answer == answerAck && t.record.value.Terminal != nil
}

// entries takes entries of a finished request out of the backlog.
func (r *reconciler) entries(ctx context.Context, id string, now time.Time) {
	r.w.mu.Lock()
	left := r.w.view.Request(id)
	r.w.mu.Unlock()
	for _, e := range left {
		record, err := load[requestRecord](ctx, r.w.deps.Ledger, requestKey(id))
		if err != nil || record.value.Terminal == nil || now.Sub(e.Accepted) < r.w.cfg.Grace {
			r.ended[id] = true // again in the next round
			continue
		}
		if r.w.forget(ctx, e.Sequence) == nil {
			r.repaired(repairEntry, id)
		}
	}
}

// claims releases builds whose worker went away when nobody waited for them any more.
func (r *reconciler) claims(ctx context.Context) {
	r.w.mu.Lock()
	abandoned := r.w.view.Abandoned()
	r.w.mu.Unlock()
	for buildID, revision := range abandoned {
		record, err := load[buildRecord](ctx, r.w.deps.Ledger, buildKey(buildID))
		if err != nil {
			continue // again in the next round
		}
		if record.revision == revision && record.value.Status == statusBuilding {
			next := record.value
			next.end(statusReleased)
			next.Lost++
			if store(ctx, r.w.deps.Ledger, &record, next) != nil {
				continue
			}
			r.repaired(repairClaim, next.RequestID)
		}
		r.w.observeBuild(record)
	}
}

// tagged notes a tag that is being moved.
func (r *reconciler) tagged(c backlog.Change) bool {
	if c.Deleted || c.Synced {
		return true
	}
	record, err := decodeRecord[tagRecord](c.Key, c.Value)
	if err != nil {
		r.w.deps.Log.Error().Err(err).Msg("a tag's record cannot be read")
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[c.Key] = movedTag{record, time.Now()}
	return true
}

// moved checks the tags that were moved lately, once each: whoever moved one to an older
// image in the same moment has done so by then.
func (r *reconciler) moved(ctx context.Context, now time.Time) {
	r.mu.Lock()
	ripe := map[string]movedTag{}
	for key, m := range r.tags {
		if now.Sub(m.at) > r.w.cfg.Grace {
			ripe[key] = m
			delete(r.tags, key)
		}
	}
	r.mu.Unlock()
	for _, m := range ripe {
		plan := builder.Plan{Target: m.record.Ref, RegistrySecret: m.record.RegistrySecret, Platform: m.record.Platform}
		digest, err := r.w.deps.Builder.TagDigest(ctx, plan)
		if err == nil && digest == m.record.Digest {
			continue
		}
		if builder.KindOf(err) == builder.KindUnavailable && err != nil {
			continue
		}
		if err := r.w.deps.Builder.Tag(ctx, plan, m.record.ImageRef); err != nil {
			if !errors.Is(err, builder.ErrImageMissing) {
				r.w.deps.Log.Warn().Err(err).Str("image", m.record.Ref).Msg("cannot move a tag to its newest image")
			}
			continue
		}
		r.repaired(repairTag, m.record.RequestID)
	}
}

func (r *reconciler) repaired(kind, requestID string) {
	r.w.deps.Metrics.repairs.WithLabelValues(kind).Inc()
	r.w.deps.Log.Warn().Str("repair", kind).Str("request_id", requestID).Msg("repaired what a worker left undone")
}
