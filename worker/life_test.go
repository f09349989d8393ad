package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// gate is an engine whose builds wait until they are let go or canceled.
type gate struct {
	started chan builder.Plan
	open    chan struct{}
	stopped chan error
}

func newGate() *gate {
	return &gate{started: make(chan builder.Plan, 100), open: make(chan struct{}), stopped: make(chan error, 100)}
}

func (g *gate) run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	g.started <- plan
	select {
	case <-g.open:
		return push(ctx, plan, logs)
	case <-ctx.Done():
		g.stopped <- context.Cause(ctx)
		kind := builder.KindCanceled
		if errors.Is(context.Cause(ctx), builder.ErrShutdown) {
			kind = builder.KindInterrupted
		}
		return builder.Result{}, &builder.Error{Kind: kind, Op: "building", Err: context.Cause(ctx)}
	}
}

func (g *gate) await(t *testing.T) builder.Plan {
	t.Helper()
	select {
	case p := <-g.started:
		return p
	case <-time.After(20 * time.Second):
		t.Fatal("no build started")
		return builder.Plan{}
	}
}

func (g *gate) awaitStop(t *testing.T) error {
	t.Helper()
	select {
	case err := <-g.stopped:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the build goes on")
		return nil
	}
}

// outcomes counts terminal events by outcome, or code, or "canceled".
func (b *bundle) outcomes(t *testing.T) map[string]int {
	t.Helper()
	got := map[string]int{}
	for _, e := range b.terminals(t) {
		switch data := e.Data.(type) {
		case *events.BuildCompleted:
			got[string(data.Outcome)]++
		case *events.BuildFailed:
			got[data.Error.Code]++
		case *events.BuildCanceled:
			got["canceled"]++
		}
	}
	return got
}

func (b *bundle) want(t *testing.T, want map[string]int) {
	t.Helper()
	if got := b.outcomes(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("outcomes %v, want %v", got, want)
	}
	if left := b.backlog.keys(); len(left) > 0 {
		t.Errorf("left in the backlog: %v", left)
	}
}

func (b *bundle) canceled(t *testing.T, id string) *events.BuildCanceled {
	t.Helper()
	for _, e := range b.terminals(t) {
		if c, ok := e.Data.(*events.BuildCanceled); ok && c.RequestID == id {
			return c
		}
	}
	t.Fatalf("request %s was not canceled: %v", id, b.outcomes(t))
	return nil
}

func (b *bundle) cancel(c events.BuildCancel) *memMessage {
	return b.cancels.add(events.Message{Subject: "build.cancel", Data: mustJSON(c), FallbackID: "seq:BUILD:c", Time: time.Now()})
}

// named is a request of a function of its own.
func (b *bundle) named(id, function string, top map[string]any, commands ...string) events.Message {
	body := map[string]any{"function": map[string]any{
		"kind": "job", "metadata": map[string]any{"name": function, "project": "demo"}, "spec": b.spec(commands...),
	}}
	maps.Copy(body, top)
	return bare(id, mustJSON(body))
}

func endAll(t *testing.T, all []*memMessage) {
	t.Helper()
	for _, m := range all {
		m.end(t)
	}
}

func TestManyRequestsShareOneBuildAndHoldNoSlots(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) { b.engine = g.run })
	b.another(t, "w2")
	var all []*memMessage
	for n := range 50 {
		m := b.queue.add(b.named(fmt.Sprintf("r%d", n), fmt.Sprintf("f%d", n), nil, "echo same"))
		m.await(t, "ack")
		all = append(all, m)
	}
	g.await(t)
	other := b.queue.add(b.named("other", "other", nil, "echo other"))
	if p := g.await(t); p.RequestID != "other" {
		t.Errorf("started %s beside the shared build, want the other request", p.RequestID)
	}
	close(g.open)
	endAll(t, append(all, other))
	b.want(t, map[string]int{"built": 2, "reused": 49})
	if got := b.runs.Load(); got != 2 {
		t.Errorf("engine ran %d times, want 2", got)
	}
	for _, e := range b.terminals(t) {
		c := e.Data.(*events.BuildCompleted)
		if got := b.digestOf(t, b.registry+"/mlrun/func-demo-"+c.Function.Name+":latest"); got != c.Digest {
			t.Errorf("tag of %s is at %s, want %s", c.Function.Name, got, c.Digest)
		}
		if c.Outcome == events.OutcomeReused && !strings.Contains(c.Reason, "shared the build of request r0") {
			t.Errorf("reason = %q", c.Reason)
		}
	}
}

func TestAFailedBuildFailsAllThatWaitedAndNoneThatCameLater(t *testing.T) {
	t.Parallel()
	g := newGate()
	var runs atomic.Int32
	b := setup(t, func(b *bundle) {
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if runs.Add(1) > 1 {
				return push(ctx, plan, logs)
			}
			g.started <- plan
			<-g.open
			fmt.Fprintln(logs, "no such package")
			return builder.Result{}, builder.Errorf(builder.KindCommandFailed, `running "exit 7"`, "exit code 7")
		}
	})
	var all []*memMessage
	for n := range 5 {
		m := b.queue.add(b.request(fmt.Sprintf("r%d", n), b.spec("exit 7"), nil))
		m.await(t, "ack")
		all = append(all, m)
	}
	g.await(t)
	close(g.open)
	endAll(t, all)
	b.want(t, map[string]int{"command_failed": 5})
	for _, e := range b.terminals(t) {
		f := e.Data.(*events.BuildFailed)
		if !strings.Contains(f.Error.Message, "exit code 7") || f.Error.Hint == "" || fmt.Sprint(f.LogTail) != "[no such package]" || f.Attempt != 1 {
			t.Errorf("%s failed with %+v, want the cause of the shared build", f.RequestID, f)
		}
	}
	b.queue.add(b.request("later", b.spec("exit 7"), nil)).end(t)
	b.want(t, map[string]int{"command_failed": 5, "built": 1})
}

func TestFaultsOfOursFailNobodyUntilTheLastTry(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) {
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.Attempt < 3 || strings.Contains(plan.Dockerfile, "never") {
				return builder.Result{}, builder.Errorf(builder.KindUnavailable, "pushing", "attempt %d of the registry", plan.Attempt)
			}
			return push(ctx, plan, logs)
		}
	})
	var all []*memMessage
	for n := range 3 {
		all = append(all, b.queue.add(b.request(fmt.Sprintf("r%d", n), b.spec("echo hi"), nil)))
		all = append(all, b.queue.add(b.request(fmt.Sprintf("n%d", n), b.spec("echo never"), nil)))
	}
	endAll(t, all)
	b.want(t, map[string]int{"built": 1, "reused": 2, "unavailable": 3})
	if got := b.runs.Load(); got != 3+int32(b.cfg.MaxAttempts) {
		t.Errorf("engine ran %d times, want 3 and %d", got, b.cfg.MaxAttempts)
	}
	dead := b.stream.of(events.TypeBuildDead)
	if len(dead) != 3 {
		t.Fatalf("%d build.dead, want 3", len(dead))
	}
	d := dead[0].Data.(*events.BuildDead)
	if d.Attempts != b.cfg.MaxAttempts || len(d.Causes) != b.cfg.MaxAttempts || d.Sequence == 0 || !strings.Contains(string(d.Request.Function), "never") || dead[0].ID != d.RequestID+".build.dead" {
		t.Errorf("dead = %+v, want %d causes and the request", d, b.cfg.MaxAttempts)
	}
}

func TestABuildOfADeadWorkerIsTakenOver(t *testing.T) {
	t.Parallel()
	const lease = 600 * time.Millisecond
	g := newGate()
	b := setup(t, func(b *bundle) {
		b.cfg.Lease = lease
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.Attempt > 1 {
				return push(ctx, plan, logs)
			}
			return g.run(ctx, plan, logs)
		}
	})
	first := b.join(t, func() Config { c := b.cfg; c.Name, c.Slots = "w0", 1; return c }(), newLink(3))
	b.stop()
	<-b.done
	lead := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	shared := b.queue.add(b.request("r2", b.spec("echo hi"), nil))
	g.await(t)
	shared.await(t, "ack")
	<-b.another(t, "w2").worker.synced
	began := time.Now()
	first.link.kill()
	lead.end(t)
	if took := time.Since(began); took > lease+time.Second {
		t.Errorf("taken over after %s, want within a lease of %s and a second", took, lease)
	}
	shared.end(t)
	b.want(t, map[string]int{"built": 1, "reused": 1})
	for _, e := range b.terminals(t) {
		if c := e.Data.(*events.BuildCompleted); c.Attempt != 2 {
			t.Errorf("%s is of attempt %d, want 2", c.RequestID, c.Attempt)
		}
	}
}

// TestAPausedWorkerHasNoEffect: a worker that stood still while another took its build
// over comes back with a finished image and may not record, tag or end anything.
func TestAPausedWorkerHasNoEffect(t *testing.T) {
	t.Parallel()
	g := newGate()
	var pushed atomic.Value
	b := setup(t, func(b *bundle) {
		b.cfg.Lease = 300 * time.Millisecond
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.Attempt > 1 {
				return push(ctx, plan, logs)
			}
			g.started <- plan
			<-g.open // deaf to the end of its lease
			result, err := push(context.WithoutCancel(ctx), plan, logs)
			pushed.Store(result.Digest)
			return result, err
		}
	})
	b.stop()
	<-b.done
	paused := b.another(t, "paused")
	// Standing still, it renews nothing.
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	g.await(t)
	paused.link.mu.Lock()
	paused.link.before = 1000
	paused.link.mu.Unlock()
	b.another(t, "w2")
	m.end(t)
	paused.link.mu.Lock()
	paused.link.before = 0
	paused.link.mu.Unlock()
	close(g.open)
	paused.stop()
	<-paused.done
	c := b.completed(t)
	if c.Attempt != 2 || c.Digest == pushed.Load() {
		t.Errorf("completed = %+v, want attempt 2 and not the paused worker's image", c)
	}
	if got := b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest"); got != c.Digest {
		t.Errorf("tag is at %s, want %s", got, c.Digest)
	}
}

func TestAStopPassesTheBuildOnAtOnce(t *testing.T) {
	t.Parallel()
	g := newGate()
	b := setup(t, func(b *bundle) {
		b.cfg.Lease, b.cfg.SoftStop = time.Minute, 10*time.Millisecond
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.Attempt > 1 {
				return push(ctx, plan, logs)
			}
			return g.run(ctx, plan, logs)
		}
	})
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	g.await(t)
	b.another(t, "w2")
	began := time.Now()
	b.stop()
	m.end(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("passed on after %s, long before the lease of a minute ends", took)
	}
	if c := b.completed(t); c.Attempt != 2 {
		t.Errorf("completed = %+v, want attempt 2", c)
	}
}

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
