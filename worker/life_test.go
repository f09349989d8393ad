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
