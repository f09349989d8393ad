package worker

import (
	"fmt"
	"testing"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

func TestCancelEndsARequestWhereverItIs(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.cfg.Slots, b.engine = 1, g.run })
	// Known to nobody yet: only requests from before the cancel are meant.
	early := b.queue.last.Add(1)
	b.cancel(events.BuildCancel{RequestID: "early", Reason: "typo"}).await(t, "ack")
	runs := b.queue.add(b.request("runs", b.spec("echo runs"), nil))
	g.await(t)
	waits := b.queue.add(b.request("waits", b.spec("echo waits"), nil))
	waits.await(t, "ack")

	b.cancel(events.BuildCancel{RequestID: "waits"}).await(t, "ack")
	waits.end(t)
	if c := b.canceled(t, "waits"); c.Function.Name != "trainer" || c.BuildID == "" || c.Reason == "" {
		t.Errorf("canceled = %+v", c)
	}
	b.cancel(events.BuildCancel{RequestID: "runs"}).await(t, "ack")
	runs.end(t)
	if cause := g.awaitStop(t); builder.KindOf(cause) != builder.KindCanceled {
		t.Errorf("the build ended with %v, want a cancel", cause)
	}
	b.queue.mu.Lock()
	old := memMessage{q: b.queue, event: b.request("early", b.spec("echo early"), nil), sequence: early}.init()
	b.queue.mu.Unlock()
	b.queue.ch <- old
	old.end(t)
	if c := b.canceled(t, "early"); c.Reason != "typo" {
		t.Errorf("canceled = %+v, want the reason of the cancel", c)
	}
	close(g.open)
	b.queue.add(b.request("done", b.spec("echo done"), nil)).end(t)
	b.cancel(events.BuildCancel{RequestID: "done"}).await(t, "ack")
	b.want(t, map[string]int{"built": 1, "canceled": 3})
	if got := b.runs.Load(); got != 2 {
		t.Errorf("engine ran %d times, want 2", got)
	}
}

func TestARequestPublishedAfterTheCancelOfItsIDIsBuilt(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.cancel(events.BuildCancel{RequestID: "r1"}).await(t, "ack")
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.want(t, map[string]int{"built": 1})
}

func TestWhenTheLeadIsCanceledTheBuildGoesOnForTheOthers(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.engine = g.run })
	lead := b.queue.add(b.request("lead", b.spec("echo hi"), nil))
	g.await(t)
	var others []*memMessage
	for n := range 3 {
		m := b.queue.add(b.request(fmt.Sprintf("other%d", n), b.spec("echo hi"), nil))
		m.await(t, "ack")
		others = append(others, m)
	}
	b.cancel(events.BuildCancel{RequestID: "lead"}).await(t, "ack")
	lead.end(t)
	b.awaitState(t, others[0], backlog.Running)
	close(g.open)
	endAll(t, others)
	b.want(t, map[string]int{"canceled": 1, "built": 1, "reused": 2})
	if got := b.runs.Load(); got != 1 {
		t.Errorf("engine ran %d times, want 1", got)
	}
}

func (b *bundle) awaitState(t *testing.T, m *memMessage, want backlog.State) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		b.backlog.mu.Lock()
		raw, more := b.backlog.values[backlog.Key(m.sequence)], b.backlog.more
		b.backlog.mu.Unlock()
		if e, err := backlog.Decode(raw); err == nil && e.State == want {
			return
		}
		select {
		case <-more:
		case <-time.After(time.Until(deadline)):
		}
	}
	t.Fatalf("entry %d is not %s in time", m.sequence, want)
}

func TestCancelOfABuildEndsAllItsRequests(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.engine = g.run })
	all := []*memMessage{b.queue.add(b.request("r0", b.spec("echo hi"), nil))}
	id := g.await(t).BuildID
	for n := range 3 {
		m := b.queue.add(b.request(fmt.Sprintf("r%d", n+1), b.spec("echo hi"), nil))
		m.await(t, "ack")
		all = append(all, m)
	}
	b.cancel(events.BuildCancel{BuildID: id}).await(t, "ack")
	endAll(t, all)
	g.awaitStop(t)
	b.want(t, map[string]int{"canceled": 4})
	close(g.open)
	b.queue.add(b.request("again", b.spec("echo hi"), nil)).end(t)
	b.want(t, map[string]int{"canceled": 4, "built": 1})
}
