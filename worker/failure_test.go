package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder"
	"kiln/events"
	"kiln/schemas"
	"kiln/worker/backlog"
)

func nopLogger() *log.Logger { return log.New(io.Discard, "", 0) }

func mustConfig(t *testing.T) *v1.ConfigFile {
	t.Helper()
	return &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"}}
}

func TestEngineFailureCarriesCodeTailAndHint(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) {
		b.engine = func(_ context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
			for i := range 30 {
				fmt.Fprintf(logs, "line %d\n", i)
			}
			return builder.Result{}, builder.Errorf(builder.KindCommandFailed, `running "exit 7"`, "exit code 7")
		}
	})
	b.queue.add(b.request("r1", b.spec("exit 7"), nil)).end(t)
	f := b.failed(t)
	if f.Error.Code != "command_failed" || !strings.Contains(f.Error.Message, "exit 7") || f.Error.Retryable {
		t.Errorf("error = %+v", f.Error)
	}
	if len(f.LogTail) != 20 || f.LogTail[19] != "line 29" {
		t.Errorf("log tail = %q, want the last 20 lines", f.LogTail)
	}
	if f.BuildID == "" || f.Attempt != 1 || f.Engine != "fake" || f.Base.Digest == "" {
		t.Errorf("failed event lacks identity: %+v", f)
	}
}

func TestSecretsStayOutOfEventsAndLogs(t *testing.T) {
	t.Parallel()
	const secret = "hunter2-very-secret"
	b := setup(t, func(b *bundle) {
		b.engine = func(_ context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			fmt.Fprintf(logs, "token is %s\n", plan.BuildArgs[0].Value)
			return builder.Result{}, builder.Errorf(builder.KindCommandFailed, "running", "curl -H %s", plan.BuildArgs[0].Value)
		}
	})
	b.queue.add(b.request("r1", b.spec("true"), map[string]any{"builder_env": map[string]string{"GIT_TOKEN": secret}})).end(t)
	raw, err := json.Marshal(b.failed(t))
	if err != nil {
		t.Fatal(err)
	}
	if all := string(raw) + b.logs.all(); strings.Contains(all, secret) {
		t.Errorf("secret leaked: %s", all)
	}
}

func TestUnavailableIsRetriedThenCompletes(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) { b.cfg.MaxAttempts = 50 })
	var calls atomic.Int32
	down := func(w http.ResponseWriter, _ *http.Request) bool {
		if calls.Add(1) > 12 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	b.faults.Store(&down)
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	m.await(t, "nak")
	m.end(t)
	if c := b.completed(t); c.Outcome != events.OutcomeBuilt {
		t.Errorf("completed = %+v, want built", c)
	}
}

func TestUnavailableForTooLongFailsWithItsHistory(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) {
		b.engine = func(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
			return builder.Result{}, builder.Errorf(builder.KindUnavailable, "pushing", "registry answered 500")
		}
	})
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	f := b.failed(t)
	if f.Error.Code != "unavailable" || !f.Error.Retryable || !strings.Contains(f.Error.Message, "tried 4 times") {
		t.Errorf("error = %+v, want unavailable after 4 tries", f.Error)
	}
	if got := b.runs.Load(); got != 4 {
		t.Errorf("engine ran %d times, want 4", got)
	}
}

func TestPushRefusedIsTheUsersToFix(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	deny := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/latest") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	}
	b.faults.Store(&deny)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	if f := b.failed(t); f.Error.Code != "push_denied" {
		t.Errorf("error = %+v, want push_denied", f.Error)
	}
}

func TestEngineThatLiesAboutItsDigestIsNotBelieved(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) {
		b.cfg.MaxAttempts = 1
		b.engine = func(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
			return builder.Result{Digest: "sha256:" + strings.Repeat("a", 64)}, nil
		}
	})
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	if f := b.failed(t); f.Error.Code != "unavailable" {
		t.Errorf("error = %+v, want unavailable", f.Error)
	}
}

func TestShutdownHandsTheRequestBackUncounted(t *testing.T) {
	t.Parallel()
	running := make(chan struct{}, 10)
	b := setup(t, func(b *bundle) {
		b.cfg.SoftStop = 10 * time.Millisecond
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.Attempt > 1 {
				return push(ctx, plan, logs)
			}
			running <- struct{}{}
			<-ctx.Done()
			return builder.Result{}, &builder.Error{Kind: builder.KindInterrupted, Op: "building", Err: context.Cause(ctx)}
		}
	})
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	<-running
	b.stop()
	<-b.done
	if got := b.terminals(t); len(got) != 0 {
		t.Fatalf("a shutdown ended the request: %+v", got)
	}
	if e := b.entryOf(t, m); e.State != backlog.Waiting || !e.NotBefore.IsZero() {
		t.Fatalf("entry = %+v, want one that waits for any worker", e)
	}
	b.start(t)
	m.end(t)
	if c := b.completed(t); c.Attempt != 2 {
		t.Errorf("completed = %+v, want attempt 2", c)
	}
	raw, _, err := b.ledger.Get(t.Context(), requestKey("r1"))
	if err != nil {
		t.Fatal(err)
	}
	var r requestRecord
	if err := json.Unmarshal(raw, &r); err != nil || r.Tries != 0 {
		t.Errorf("record = %+v (%v), want no counted try", r, err)
	}
}

func TestInterruptStopsWithoutAStopSignal(t *testing.T) {
	t.Parallel()
	running := make(chan struct{}, 10)
	b := setup(t, func(b *bundle) {
		b.engine = func(ctx context.Context, _ builder.Plan, _ io.Writer) (builder.Result, error) {
			running <- struct{}{}
			<-ctx.Done()
			return builder.Result{}, &builder.Error{Kind: builder.KindInterrupted, Op: "building", Err: context.Cause(ctx)}
		}
	})
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	<-running
	b.worker.Interrupt()
	b.worker.Interrupt()
	select {
	case <-b.done:
	case <-time.After(10 * time.Second):
		t.Fatal("Run() goes on after Interrupt()")
	}
	if e := b.entryOf(t, m); e.State != backlog.Waiting {
		t.Errorf("entry = %+v, want one that waits", e)
	}
	if got := b.terminals(t); len(got) != 0 {
		t.Errorf("an interrupt ended the request: %+v", got)
	}
}

func TestSoftStopLetsARunningBuildFinish(t *testing.T) {
	t.Parallel()
	running, goOn := make(chan struct{}), make(chan struct{})
	b := setup(t, func(b *bundle) {
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			close(running)
			<-goOn
			return push(ctx, plan, logs)
		}
	})
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	<-running
	b.stop()
	close(goOn)
	<-b.done
	m.end(t)
	b.completed(t)
}

func TestLostLeaseStopsTheBuildAndEndsNothing(t *testing.T) {
	t.Parallel()
	stopped := make(chan error, 1)
	b := setup(t, func(b *bundle) {
		b.cfg.Lease = 90 * time.Millisecond
		b.engine = func(ctx context.Context, _ builder.Plan, _ io.Writer) (builder.Result, error) {
			<-ctx.Done()
			stopped <- context.Cause(ctx)
			return builder.Result{}, &builder.Error{Kind: builder.KindCanceled, Op: "building", Err: context.Cause(ctx)}
		}
	})
	b.ledger.mu.Lock()
	b.ledger.fail = func(key string, value []byte) (error, bool) {
		if strings.HasPrefix(key, "build.") && b.runs.Load() > 0 {
			return ErrConflict, false // somebody else took the build over
		}
		return nil, false
	}
	b.ledger.mu.Unlock()
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	select {
	case cause := <-stopped:
		if !errors.Is(cause, builder.ErrLeaseLost) {
			t.Errorf("cause = %v, want ErrLeaseLost", cause)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the build went on without its lease")
	}
	b.stop()
	<-b.done
	if e := b.entryOf(t, m); e.RequestID != "r1" {
		t.Errorf("entry = %+v, want that of r1", e)
	}
	if got := b.terminals(t); len(got) != 0 {
		t.Errorf("terminal events %+v, want none", got)
	}
}

func TestBuildOfADeadWorkerIsTakenOverAfterItsLease(t *testing.T) {
	t.Parallel()
	const lease = 300 * time.Millisecond
	b := setup(t, func(b *bundle) { b.cfg.Lease = lease })
	b.queue.add(b.request("first", b.spec("echo hi"), nil)).end(t)
	first := b.completed(t)
	key := buildKey(first.BuildID)
	_, revision, err := b.ledger.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	// What its clock says does not matter, nor is it compared.
	raw, err := json.Marshal(buildRecord{Status: statusBuilding, Attempt: 7, Owner: "dead", ExpiresAt: time.Now().Add(time.Hour), RequestID: "first"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ledger.Put(t.Context(), key, raw, revision); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(lease)
	b.queue.add(b.request("second", b.spec("echo hi"), nil)).end(t)
	all := b.terminals(t)
	second := all[len(all)-1].Data.(*events.BuildCompleted)
	if second.Attempt != 8 || second.Outcome != events.OutcomeBuilt || time.Now().Before(until) {
		t.Errorf("second = %+v, want built by attempt 8 after the dead worker's lease", second)
	}
}

func TestEveryKindHasOneFate(t *testing.T) {
	t.Parallel()
	for _, code := range schemas.FailureCodes() {
		err := builder.Errorf(builder.Kind(code), "doing", "x")
		want := fateSettle
		if code == string(builder.KindUnavailable) {
			want = fateRetry
		}
		if got := decide(t.Context(), err, false); got != want {
			t.Errorf("decide(%s) = %v, want %v", code, got, want)
		}
		if got := decide(t.Context(), err, true); got != fateSettle {
			t.Errorf("decide(%s) on the last try = %v, want settle", code, got)
		}
	}
	for kind, want := range map[builder.Kind]fate{builder.KindInterrupted: fateHandBack, builder.KindLeaseLost: fateAbandon} {
		if got := decide(t.Context(), builder.Errorf(kind, "doing", "x"), true); got != want {
			t.Errorf("decide(%s) = %v, want %v", kind, got, want)
		}
	}
	if got := decide(t.Context(), errors.New("nobody classified this"), false); got != fateRetry {
		t.Errorf("decide(unclassified) = %v, want retry", got)
	}
}

func TestTailKeepsTheLastLinesBounded(t *testing.T) {
	t.Parallel()
	var tl Tail
	for i := range 50 {
		fmt.Fprintf(&tl, "line %d", i)
		io.WriteString(&tl, "\n")
	}
	io.WriteString(&tl, strings.Repeat("é", 5000))
	got := tl.Lines()
	if len(got) != tailLines || got[0] != "line 31" || len(got[19]) > tailLineBytes+20 {
		t.Errorf("Lines() = %d lines, first %q, last of %d bytes", len(got), got[0], len(got[len(got)-1]))
	}
}

func TestDelayGrowsWithinItsBounds(t *testing.T) {
	t.Parallel()
	w := &Worker{cfg: Config{RetryDelay: time.Second, RetryMaxDelay: time.Minute}}
	for tries, nominal := range map[int]time.Duration{1: time.Second, 3: 4 * time.Second, 20: time.Minute} {
		if got := w.delay(tries); got < nominal/2 || got > nominal {
			t.Errorf("delay(%d) = %s, want between %s and %s", tries, got, nominal/2, nominal)
		}
	}
}
