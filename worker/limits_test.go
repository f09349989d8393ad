package worker

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/builder"
	"kiln/events"
)

func TestANewerRequestSupersedesOlderOnesThatWait(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.cfg.Slots, b.engine = 1, g.run })
	first := b.queue.add(b.request("first", b.spec("echo 1"), nil))
	g.await(t)
	second := b.queue.add(b.request("second", b.spec("echo 2"), nil))
	second.await(t, "ack")
	elsewhere := b.queue.add(b.named("elsewhere", "other", nil, "echo 3"))
	elsewhere.await(t, "ack")
	third := b.queue.add(b.request("third", b.spec("echo 4"), map[string]any{"options": map[string]any{"supersede": true}}))
	second.end(t)
	if c := b.canceled(t, "second"); c.SupersededBy != "third" || !strings.Contains(c.Reason, "third") {
		t.Errorf("canceled = %+v, want superseded by third", c)
	}
	close(g.open)
	endAll(t, []*memMessage{first, third, elsewhere})
	b.want(t, map[string]int{"built": 3, "canceled": 1})
}

func TestAWaitingRequestIsToldWhere(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.cfg.Slots, b.engine = 1, g.run })
	first := b.queue.add(b.request("first", b.spec("echo 1"), nil))
	g.await(t)
	var all []*memMessage
	for _, id := range []string{"second", "third"} {
		m := b.queue.add(b.request(id, b.spec("echo "+id), map[string]any{"options": map[string]any{"priority": "bulk"}}))
		m.await(t, "ack")
		all = append(all, m)
	}
	shared := b.queue.add(b.request("shared", b.spec("echo 1"), nil))
	shared.await(t, "ack")
	close(g.open)
	endAll(t, append(all, first, shared))
	got := map[string]*events.BuildQueued{}
	for _, e := range b.stream.of(events.TypeBuildQueued) {
		q := e.Data.(*events.BuildQueued)
		if e.ID != q.RequestID+".build.queued" || got[q.RequestID] != nil {
			t.Errorf("event %s of request %s", e.ID, q.RequestID)
		}
		got[q.RequestID] = q
	}
	if len(got) != 3 || got["second"].Position != 1 || got["third"].Position != 2 || got["third"].Priority != events.PriorityBulk {
		t.Errorf("queued = %+v, want second at 1 and third at 2", got)
	}
	if q := got["shared"]; q == nil || q.Position != 0 || !strings.Contains(q.Reason, "first") {
		t.Errorf("queued = %+v, want shared with first", q)
	}
}

func TestAFullQueueRefusesOnlyItsProject(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.cfg.Slots, b.cfg.QueueLimit, b.engine = 1, 2, g.run })
	var all []*memMessage
	for n := range 2 {
		m := b.queue.add(b.request(fmt.Sprintf("r%d", n), b.spec(fmt.Sprintf("echo %d", n)), nil))
		m.await(t, "ack")
		all = append(all, m)
	}
	b.queue.add(b.request("full", b.spec("echo full"), nil)).end(t)
	if f := b.failed(t); f.Error.Code != "queue_full" || !f.Error.Retryable || !strings.Contains(f.Error.Message, "demo") {
		t.Errorf("failed = %+v, want queue_full", f.Error)
	}
	body := map[string]any{"function": map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "x", "project": "elsewhere"}, "spec": b.spec("echo x"),
	}}
	all = append(all, b.queue.add(bare("elsewhere", mustJSON(body))))
	close(g.open)
	endAll(t, all)
	b.want(t, map[string]int{"built": 3, "queue_full": 1})
}

func TestBoundsHoldOverAllWorkers(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int32
	b := setup(t, func(b *bundle) {
		b.cfg.TotalLimit, b.cfg.Slots = 2, 4
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			n := running.Add(1)
			defer running.Add(-1)
			for {
				if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			time.Sleep(5 * time.Millisecond)
			return push(ctx, plan, logs)
		}
	})
	b.another(t, "w2")
	b.another(t, "w3")
	var all []*memMessage
	for n := range 40 {
		all = append(all, b.queue.add(b.named(fmt.Sprintf("r%d", n), fmt.Sprintf("f%d", n), nil, fmt.Sprintf("echo %d", n))))
	}
	endAll(t, all)
	b.want(t, map[string]int{"built": 40})
	if got := most.Load(); got != 2 {
		t.Errorf("%d builds ran at a time, want 2", got)
	}
}

func TestOutOfMemoryIsTriedOnceWithMore(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		needs int64
		want  map[string]int
	}{
		"enough": {needs: 2 << 30, want: map[string]int{"built": 1}},
		"never":  {needs: 9 << 30, want: map[string]int{"out_of_memory": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []int64
			b := setup(t, func(b *bundle) {
				b.limits = builder.Limits{Memory: 1 << 30}
				b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
					got = append(got, plan.Limits.Memory)
					if plan.Limits.Memory < tc.needs {
						return builder.Result{}, builder.Errorf(builder.KindOutOfMemory, "building", "killed at %d bytes", plan.Limits.Memory)
					}
					return push(ctx, plan, logs)
				}
			})
			b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
			b.want(t, tc.want)
			if fmt.Sprint(got) != fmt.Sprint([]int64{1 << 30, 2 << 30}) {
				t.Errorf("memory %v, want 1 GiB and then 2 GiB", got)
			}
		})
	}
}
