package trigger

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/events"
	"kiln/worker"
)

// reconciler finds what no queue brings: results of builds that were not heard, requests
// for builds that were not published, and changes that a broken watch missed.
type reconciler struct {
	t *Trigger
	// next is the position in the stream of builds to read from; 0 at first.
	next uint64
	// asked are the runs whose request for a build was looked for.
	asked map[string]bool
}

// reconcile repairs until ctx ends, at once for the first time.
func (t *Trigger) reconcile(ctx, work context.Context) {
	r := &reconciler{t: t, asked: map[string]bool{}}
	for ctx.Err() == nil {
		if err := r.round(ctx, work); err != nil && ctx.Err() == nil {
			t.deps.Log.Warn().Err(err).Msg("cannot look after runs")
		}
		worker.Sleep(ctx, worker.Jitter(t.cfg.Reconcile))
	}
}

func (r *reconciler) round(ctx, work context.Context) error {
	first := time.Now()
	for _, key := range r.quiet() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.t.look(ctx, key)
		if s, ok := r.t.known(key); ok && s.State == stateWaiting && s.Build != "" {
			first = minTime(first, s.Requested)
			r.ask(ctx, s)
		}
	}
	if r.t.deps.History == nil || r.next == 0 && time.Since(first) < r.t.cfg.Grace {
		return nil
	}
	return r.results(ctx, work, first)
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// quiet lists the open runs of which nothing was heard for a while, or nothing at all.
func (r *reconciler) quiet() []string {
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	var out []string
	for key, since := range r.t.opened {
		s := r.t.view[key]
		if s == nil && time.Since(since) > r.t.cfg.Grace || s != nil && time.Since(s.since) > r.t.cfg.Grace {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// ask publishes the request for a build that a run waits for too long, if it is not there.
func (r *reconciler) ask(ctx context.Context, s stored) {
	if r.asked[s.key] || time.Since(s.Requested) < 5*r.t.cfg.Grace {
		return
	}
	out, err := r.t.deps.Publisher.Published(ctx, events.TypeBuildRequested, s.Build, s.Requested.Add(-time.Minute))
	if err != nil {
		return
	}
	if r.asked[s.key] = true; out {
		return
	}
	request, err := r.t.request(ctx, s)
	if err == nil {
		err = r.t.ask(ctx, request, s, true)
	}
	r.repaired("request", s, err)
}

// results reads how builds ended since the last round, as far as that is some time ago,
// and tells it to the runs that wait still.
func (r *reconciler) results(ctx, work context.Context, since time.Time) error {
	types := []events.Type{events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled}
	return r.t.deps.History.Scan(ctx, types, since.Add(-time.Minute), r.next, func(m events.Message) bool {
		if time.Since(m.Time) < r.t.cfg.Grace {
			return false
		}
		if key, requestID, ok := waiter(m); ok {
			if s, ok := r.t.known(key); ok && s.State == stateWaiting && s.Build == requestID {
				end, cancel := detached(work)
				defer cancel()
				if r.t.result(end, m).again {
					return false
				}
				r.repaired("result", s, nil)
			}
		}
		r.next = max(r.next, sequenceOf(m)+1)
		return ctx.Err() == nil
	})
}

func (r *reconciler) repaired(kind string, s stored, err error) {
	r.t.deps.Metrics.repairs.WithLabelValues(kind).Inc()
	r.t.deps.Log.Warn().Err(err).Str("repair", kind).Str("run_id", s.RunID).Msg("repaired what was left undone")
}

// sequenceOf reads the position of a message in its stream, 0 if it names none.
func sequenceOf(m events.Message) uint64 {
	n, _ := strconv.ParseUint(m.FallbackID[strings.LastIndexByte(m.FallbackID, ':')+1:], 10, 64)
	return n
}
