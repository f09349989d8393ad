package worker

import (
	"cmp"
	"context"
	"errors"
	"time"

	"kiln/events"
	"kiln/worker/backlog"
)

// takeCancel brings one build.cancel to its answer.
func (w *Worker) takeCancel(work context.Context, msg Message) {
	ctx, cancel := context.WithTimeoutCause(work, answerTimeout, errors.New("canceling took too long"))
	defer cancel()
	e, err := events.Decode(msg.Event())
	wanted, ok := e.Data.(*events.BuildCancel)
	if err != nil || !ok {
		w.deps.Log.Warn().Err(err).Uint64("sequence", msg.Sequence()).Msg("a build.cancel cannot be read")
	} else {
		err = w.cancel(ctx, *wanted, msg.Sequence())
	}
	if ok && err != nil {
		w.deps.Log.Warn().Err(err).Msg("cannot cancel yet")
		err = msg.Nak(ctx, w.cfg.RetryDelay)
	} else {
		err = msg.Ack(ctx)
	}
	if err != nil {
		w.deps.Log.Warn().Err(err).Msg("cannot answer the queue; the cancel will come again")
	}
}

// cancel ends what the message means: a request, or all that wait for a build. Requests
// that were published after it are not meant.
func (w *Worker) cancel(ctx context.Context, c events.BuildCancel, sequence uint64) error {
	reason := cmp.Or(c.Reason, "The request was canceled.")
	if c.RequestID != "" {
		return w.cancelRequest(ctx, c.RequestID, sequence, reason)
	}
	w.mu.Lock()
	all := w.view.Build(c.BuildID)
	w.mu.Unlock()
	var faults []error
	for _, e := range all {
		if e.Sequence < sequence {
			faults = append(faults, w.cancelRequest(ctx, e.RequestID, sequence, reason))
		}
	}
	return errors.Join(faults...)
}

// cancelRequest decides a request as canceled, if it is not decided. One that was not
// taken in yet is ended when it is.
func (w *Worker) cancelRequest(ctx context.Context, id string, sequence uint64, reason string) error {
	for {
		entries := w.expected(id, sequence)
		record, err := load[requestRecord](ctx, w.deps.Ledger, requestKey(id))
		if err != nil {
			return err
		}
		decided := record.value.Terminal
		if len(entries) == 0 && decided == nil {
			next := record.value
			next.RequestID, next.Cancel = id, &cancelRecord{Sequence: max(sequence, next.canceledAt()), Reason: reason}
			if err := store(ctx, w.deps.Ledger, &record, next); errors.Is(err, ErrConflict) {
				continue
			} else if err != nil {
				return err
			}
			w.reach("cancel noted")
			return nil
		}
		if decided != nil && decided.Type != events.TypeBuildCanceled {
			w.deps.Log.Info().Str("request_id", id).Msg("the cancel comes too late")
			return nil
		}
		return w.cancelEntries(ctx, id, entries, record, reason)
	}
}

func (w *Worker) cancelEntries(ctx context.Context, id string, entries []backlog.Entry, record entry[requestRecord], reason string) error {
	t := w.taskOf(backlog.Entry{RequestID: id, Requested: time.Now(), Accepted: time.Now()})
	if len(entries) > 0 {
		t = w.taskOf(entries[0])
	}
	t.record = record
	ended, v := w.ended(ctx, t)
	if !ended {
		v = w.settle(ctx, t, t.canceledEvent(reason, ""))
	}
	if v.answer != answerAck {
		return errors.New("the ledger or the event stream cannot be used")
	}
	for _, e := range entries {
		if err := w.forget(ctx, e.Sequence); err != nil {
			return err
		}
	}
	return nil
}

// expected returns the entries of a request that a cancel means. Until there is one,
// it is looked for among those that come.
func (w *Worker) expected(id string, sequence uint64) []backlog.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []backlog.Entry
	for _, e := range w.view.Request(id) {
		if e.Sequence < sequence {
			out = append(out, e)
		}
	}
	if len(out) > 0 {
		delete(w.cancels, id)
		return out
	}
	if len(w.cancels) >= plannedMax {
		clear(w.cancels) // the records know them all
	}
	w.cancels[id] = sequence
	return nil
}

// expect ends a request that was canceled while it was on its way into the backlog.
// The caller has w.mu.
func (w *Worker) expect(ctx context.Context, c backlog.Change) {
	if len(w.cancels) == 0 || c.Deleted || c.Synced || w.drained {
		return
	}
	sequence, _ := backlog.Sequence(c.Key)
	e, _, ok := w.view.Get(sequence)
	if at, wanted := w.cancels[e.RequestID]; !ok || !wanted || e.Sequence >= at {
		return
	}
	delete(w.cancels, e.RequestID)
	w.jobs.Go(func() {
		t := w.taskOf(e)
		if again := w.finish(ctx, t, func() verdict { return verdict{answer: answerNak} }); again > 0 {
			t.log.Warn().Msg("the request will be ended as canceled when its build ends")
		}
	})
}

// orphan is called when an entry is gone. If a build of this worker was for it, another
// request that waits for the build takes the lead; if there is none, the build ends. The
// caller has w.mu.
func (w *Worker) orphan(ctx context.Context, c backlog.Change) {
	sequence, _ := backlog.Sequence(c.Key)
	x := w.executions[sequence]
	if x == nil || x.over || w.drained {
		return
	}
	w.jobs.Go(func() { w.succeed(ctx, x, sequence) })
}

// succeed finds a successor for the lead of a build.
func (w *Worker) succeed(ctx context.Context, x *execution, gone uint64) {
	for {
		w.mu.Lock()
		if x.over || x.entry.Sequence != gone {
			w.mu.Unlock()
			return
		}
		e, revision, ok := w.view.Heir(x.entry.BuildID, time.Now())
		if !ok {
			x.over = true
			x.cancel(errNobodyWaits)
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		e.State, e.Owner, e.NotBefore = backlog.Running, w.cfg.Name, time.Time{}
		next, err := w.write(ctx, e, revision)
		if err != nil {
			w.release(e.Sequence, w.refresh(ctx, e.Sequence, revision, err))
			continue
		}
		w.mu.Lock()
		taken := !x.over
		if taken {
			delete(w.executions, gone)
			x.entry, x.revision = e, next
			w.executions[e.Sequence] = x
		}
		w.mu.Unlock()
		if !taken {
			w.release(e.Sequence, w.open(ctx, e, next, time.Time{}))
		}
		return
	}
}
