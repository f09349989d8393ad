package enginetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// running starts a build that waits, and returns once its command runs.
func (h Harness) running(ctx context.Context, t *testing.T, plan builder.Plan) <-chan error {
	t.Helper()
	out := &buffer{}
	done := make(chan error, 1)
	go func() {
		_, err := h.Engine.Run(ctx, plan, out)
		done <- err
	}()
	out.await(t, "waiting\n")
	return done
}

const waits = "RUN echo waiting; sleep 600"

func within(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not return within 20 s")
		return nil
	}
}

func testCancel(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	plan := h.plan(t, waits)
	done := h.running(ctx, t, plan)
	cancel()
	wantKind(t, within(t, done), builder.KindCanceled, "")
	h.absent(t, plan)
}

func testShutdown(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	plan := h.plan(t, waits)
	done := h.running(ctx, t, plan)
	cancel(fmt.Errorf("stopping: %w", builder.ErrShutdown))
	wantKind(t, within(t, done), builder.KindInterrupted, "")
}

func testDeadline(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("too slow"))
	defer cancel()
	_, logs, err := h.build(ctx, h.plan(t, waits))
	wantKind(t, err, builder.KindTimeout, logs)
}

func testLimit(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, waits)
	plan.Limits.Timeout = time.Second
	began := time.Now()
	_, logs, err := h.build(t.Context(), plan)
	wantKind(t, err, builder.KindTimeout, logs)
	if took := time.Since(began); took < time.Second || took > 20*time.Second {
		t.Errorf("ended after %s, want soon after the limit of 1 s", took)
	}
	if !strings.Contains(err.Error(), "1s") {
		t.Errorf("error %q must name the limit", err)
	}
}

func testCanceledBefore(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	plan := h.plan(t, waits)
	_, logs, err := h.build(ctx, plan)
	wantKind(t, err, builder.KindCanceled, logs)
	h.absent(t, plan)
}

// absent checks that nothing was pushed.
func (h Harness) absent(t *testing.T, plan builder.Plan) {
	t.Helper()
	ref, err := name.ParseReference(plan.Destination)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref); err == nil {
		t.Errorf("%s was pushed", plan.Destination)
	}
}

func testSameAttempt(t *testing.T, h Harness) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	plan := h.plan(t, waits)
	first := h.running(ctx, t, plan)
	// The second ends with its own context while the first goes on.
	short, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	_, logs, err := h.build(short, plan)
	wantKind(t, err, builder.KindTimeout, logs)
	select {
	case err := <-first:
		t.Fatalf("the second run ended the first: %v", err)
	default:
	}
	cancel()
	wantKind(t, within(t, first), builder.KindCanceled, "")
}
