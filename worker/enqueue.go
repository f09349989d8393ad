package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// enqueue puts a planned request into the backlog. Where a slot is free and nobody waits
// it is claimed with the same write and starts at once. A repetition finds its entry
// there.
func (w *Worker) enqueue(ctx context.Context, t *task, record entry[buildRecord]) error {
	e := t.entry(w.cfg.Name, 0, time.Now().UTC())
	if record.value.finished() {
		// Its result does not serve the request; one that comes later does.
		e.Seen = record.revision
	}
	reserved, err := w.reserve(&e)
	if err != nil {
		return err
	}
	raw, err := e.Encode()
	if err != nil {
		return err
	}
	revision, err := Put(ctx, w.deps.Backlog, backlog.Key(e.Sequence), raw, 0)
	if err != nil {
		w.unreserve(reserved)
		if errors.Is(err, ErrConflict) {
			return nil // taken in before
		}
		return &builder.Error{Kind: builder.KindUnavailable, Op: "accepting the request", Err: err}
	}
	w.reach("entry stored")
	own := *t // the build may begin before this message is answered
	w.planned.put(&own)
	w.mu.Lock()
	w.view.Put(e, revision, time.Now())
	if reserved {
		w.free++
		if w.view.HoldRun(e.Sequence, time.Now()) {
			w.launch(w.work, e, revision) //nolint:contextcheck // the build outlives the message
		}
	}
	w.mu.Unlock()
	w.wake()
	if !reserved {
		w.announceWait(ctx, t, e)
	}
	return nil
}

// reserve takes a slot for the entry if it can start at once, and refuses it if its
// project has too many already.
func (w *Worker) reserve(e *backlog.Entry) (reserved bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bound := w.cfg.QueueLimit; bound > 0 && w.view.Project(e.Project) >= bound {
		return false, builder.Errorf(builder.KindQueueFull, "accepting the request",
			"project %s has %d unfinished requests, as many as it may have", e.Project, w.view.Project(e.Project))
	}
	if w.stopping || w.free == 0 || !w.view.Reserve(*e) {
		return false, nil
	}
	w.free--
	e.State, e.Owner = backlog.Running, w.cfg.Name
	return true, nil
}

func (w *Worker) unreserve(reserved bool) {
	if !reserved {
		return
	}
	w.mu.Lock()
	w.free++
	w.mu.Unlock()
	w.wake()
}

// announceWait tells that the request waits, and for what. It is for people: that it
// cannot be published holds nothing up.
func (w *Worker) announceWait(ctx context.Context, t *task, e backlog.Entry) {
	now := time.Now()
	w.mu.Lock()
	_, running := w.executions[e.Sequence]
	outlook, ok := w.view.Outlook(e.Sequence, now)
	w.mu.Unlock()
	if running || !ok {
		return
	}
	priority := e.Priority
	if priority == "" {
		priority = events.PriorityAuto
	}
	reason := fmt.Sprintf("The request is number %d of those that wait for a free slot.", outlook.Position)
	if outlook.Position == 0 {
		reason = fmt.Sprintf("The request shares the build of request %s, which is in progress.", outlook.Behind)
	}
	event := t.newEvent(events.TypeBuildQueued, &events.BuildQueued{
		RequestID: t.id, BuildID: e.BuildID, Function: t.subject, Image: t.image, Priority: priority,
		Position: outlook.Position, Reason: reason, EstimatedStart: outlook.Start.UTC(), Queued: e.Accepted,
	}, now.UTC())
	if err := w.deps.Publisher.Publish(ctx, event); err != nil {
		t.log.Warn().Err(err).Msg("cannot tell that the request waits")
	}
	w.reach("wait published")
}

// Bounds of planCache.
const (
	plannedMax = 256
	plannedAge = 30 * time.Second
)

// planCache keeps planned tasks for a moment, so that a build need not be planned again
// by the worker that took it in. Safe for concurrent use.
type planCache struct {
	mu    sync.Mutex
	tasks map[uint64]plannedTask
	order []uint64
}

type plannedTask struct {
	task *task
	at   time.Time
}

func (c *planCache) put(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tasks == nil {
		c.tasks = map[uint64]plannedTask{}
	}
	c.tasks[t.sequence] = plannedTask{t, time.Now()}
	for c.order = append(c.order, t.sequence); len(c.order) > plannedMax; c.order = c.order[1:] {
		delete(c.tasks, c.order[0])
	}
}

// take returns the task once, nil if it is not there or too old.
func (c *planCache) take(sequence uint64) *task {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.tasks[sequence]
	delete(c.tasks, sequence)
	if !ok || time.Since(p.at) > plannedAge {
		return nil
	}
	return p.task
}
