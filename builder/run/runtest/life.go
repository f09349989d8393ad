package runtest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"kiln/builder"
)

func testShutdown(t *testing.T, h Harness) {
	t.Helper()
	for _, cause := range []error{builder.ErrShutdown, builder.ErrLeaseLost} {
		plan := NewPlan(h.Image, t.Name()+cause.Error(), "id", "lines", "3", "wait")
		ctx, stop := shutdown(t.Context())
		first := begin(ctx, h.Runner, plan)
		first.log.Await(t, "line 2\n")
		stop(cause)
		first.fails(t, builder.KindInterrupted)
		id := first.once(t)
		// The process goes on, and is found with all that it wrote.
		canceled, cancel := context.WithCancel(t.Context())
		second := begin(canceled, h.Another(t), plan)
		second.log.Await(t, "line 2\n")
		if again := second.once(t); again != id {
			t.Errorf("another process: %s and %s", id, again)
		}
		if len(second.started) == 0 {
			select {
			case <-second.started:
			case <-time.After(10 * time.Second):
				t.Error("Started was not called")
			}
		}
		cancel()
		second.fails(t, builder.KindCanceled)
	}
}

func testTogether(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "wait")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := begin(t.Context(), h.Runner, plan)
	first.log.Await(t, "id ")
	second, third := begin(ctx, h.Runner, plan), begin(t.Context(), h.Another(t), plan)
	second.log.Await(t, "id ")
	third.log.Await(t, "id ")
	cancel()
	// All see the same end.
	for _, c := range []*call{second, first, third} {
		c.fails(t, builder.KindCanceled)
		if c.once(t) != first.once(t) {
			t.Error("another process")
		}
	}
}

func testKept(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "results", `{"a":1}`, "exit", "7")
	first := begin(t.Context(), h.Runner, plan)
	want := first.ok(t, 7)
	for _, r := range []*call{begin(t.Context(), h.Runner, plan), begin(t.Context(), h.Another(t), plan)} {
		got := r.ok(t, 7)
		if got.ExitCode != want.ExitCode || string(got.Results) != string(want.Results) || !got.Finished.Equal(want.Finished) {
			t.Errorf("result %+v, want %+v", got, want)
		}
		if r.once(t) != first.once(t) || len(r.started) > 1 {
			t.Errorf("another process; Started was called %d times", len(r.started))
		}
	}
	if err := h.Runner.Forget(t.Context(), plan.RunID, plan.Attempt); err != nil {
		t.Fatal(err)
	}
	h.nothing(t)
	again := begin(t.Context(), h.Runner, plan)
	if again.ok(t, 7); again.once(t) == first.once(t) {
		t.Error("a forgotten attempt has its old log")
	}
}

func testCanceledBefore(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := begin(ctx, h.Runner, plan)
	if c.fails(t, builder.KindCanceled); strings.Contains(c.log.String(), "id ") {
		t.Error("the process was started")
	}
	h.nothing(t)
	begin(t.Context(), h.Runner, plan).ok(t, 0)
}

func testCancel(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "wait")
	ctx, cancel := context.WithCancel(t.Context())
	first := begin(ctx, h.Runner, plan)
	first.log.Await(t, "id ")
	cancel()
	first.fails(t, builder.KindCanceled)
	// It is not started again.
	second := begin(t.Context(), h.Runner, plan)
	second.fails(t, builder.KindCanceled)
	if !h.LosesLogs && second.once(t) != first.once(t) {
		t.Error("another process")
	}
}

func testCancelAttached(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "wait")
	ctx, stop := shutdown(t.Context())
	first := begin(ctx, h.Runner, plan)
	first.log.Await(t, "id ")
	stop(builder.ErrShutdown)
	first.fails(t, builder.KindInterrupted)
	// Canceled before it is even asked for.
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	begin(canceled, h.Another(t), plan).fails(t, builder.KindCanceled)
	begin(t.Context(), h.Another(t), plan).fails(t, builder.KindCanceled)
}

func testStubborn(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "stay")
	ctx, cancel := context.WithCancel(t.Context())
	c := begin(ctx, h.Runner, plan)
	c.log.Await(t, "id ")
	cancel()
	c.fails(t, builder.KindCanceled)
}

func testDeadline(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("too slow"))
	defer cancel()
	begin(ctx, h.Runner, h.plan(t, "id", "wait")).fails(t, builder.KindTimeout)
}

func testLimit(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "wait")
	plan.Limits.Timeout = 2 * time.Second
	began := time.Now()
	ctx, stop := shutdown(t.Context())
	first := begin(ctx, h.Runner, plan)
	first.log.Await(t, "id ")
	stop(builder.ErrShutdown)
	first.fails(t, builder.KindInterrupted)
	// The time counts from the start, whoever looks on.
	c := begin(t.Context(), h.Another(t), plan)
	text := c.fails(t, builder.KindTimeout)
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("ended after %s, want the limit of 2 s", took)
	}
	if !strings.Contains(text, "2s") {
		t.Errorf("error %q does not name the limit", text)
	}
}

func testForget(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "id", "wait")
	if err := h.Runner.Forget(t.Context(), plan.RunID, 1); err != nil {
		t.Errorf("what never was: %v", err)
	}
	ctx, stop := shutdown(t.Context())
	c := begin(ctx, h.Runner, plan)
	c.log.Await(t, "id ")
	stop(builder.ErrShutdown)
	c.fails(t, builder.KindInterrupted)
	for range 2 {
		if err := h.Another(t).Forget(t.Context(), plan.RunID, 1); err != nil {
			t.Errorf("what runs, or is forgotten: %v", err)
		}
	}
	h.nothing(t)
}
