package worker

import (
	"context"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/backlog"
)

// reconciling is a bundle whose workers look after each other all the time.
func reconciling(t *testing.T) *bundle {
	t.Helper()
	return setup(t, func(b *bundle) {
		b.idle = true
		b.history = memHistory{b.queue, b.stream}
		b.cfg.Reconcile, b.cfg.Grace = 10*time.Millisecond, 100*time.Millisecond
	})
}

// eventually waits for what a reconciler does on its own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestARequestThatNobodyHasIsHandledAgain(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	m := b.request("r1", b.spec("echo hi"), nil)
	b.queue.stored[b.queue.last.Add(1)] = m // stored, and never delivered
	b.start(t)
	b.another(t, "w2")
	eventually(t, "an outcome", func() bool { return len(b.terminals(t)) > 0 && len(b.backlog.keys()) == 0 })
	if c := b.completed(t); c.RequestID != "r1" {
		t.Errorf("completed = %+v, want r1", c)
	}
}

func TestADecidedOutcomeThatIsNotOutIsPublished(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	b.start(t)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	want := b.only(t)
	b.stream.mu.Lock()
	b.stream.stored, b.stream.sequences, b.stream.ids = nil, nil, nil
	b.stream.mu.Unlock()
	// A worker that starts now reads the whole stream, in which the outcome is missing.
	b.stop()
	<-b.done
	b.another(t, "w2")
	eventually(t, "the event", func() bool { return len(b.terminals(t)) > 0 })
	if got := b.only(t); got.ID != want.ID || !got.Time.Equal(want.Time) {
		t.Errorf("published %s of %s, want the very same event as before, %s of %s", got.ID, got.Time, want.ID, want.Time)
	}
}

func TestAnEntryOfAFinishedRequestIsTakenOut(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	m := b.queue.add(b.request("r1", b.spec("echo hi"), nil))
	b.start(t)
	m.end(t)
	raw, err := backlog.Entry{
		RequestID: "r1", Sequence: m.sequence, BuildID: "x", State: backlog.Waiting, Accepted: time.Now(),
		NotBefore: time.Now().Add(time.Hour),
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.backlog.Put(t.Context(), backlog.Key(m.sequence), raw, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an empty backlog", func() bool { return len(b.backlog.keys()) == 0 })
	b.only(t)
}

func TestATagThatALateWorkerMovedBackIsRepaired(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	b.cfg.Grace = 500 * time.Millisecond
	b.start(t)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	want := b.completed(t).Digest
	ref, err := name.ParseReference(b.registry + "/mlrun/func-demo-trainer:latest")
	if err != nil {
		t.Fatal(err)
	}
	old, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, old); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tag", func() bool { return b.digestOf(t, ref.Name()) == want })
}

func TestTheClaimOfADeadWorkerThatNobodyWaitsForIsReleased(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	b.cfg.Lease = 300 * time.Millisecond
	b.start(t)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t) // it watches the ledger
	read := func() (r buildRecord) {
		raw, _, err := b.ledger.Get(context.Background(), buildKey("x"))
		if err == nil {
			err = json.Unmarshal(raw, &r)
		}
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	claim := buildRecord{Status: statusBuilding, Attempt: 3, Owner: "dead", RequestID: "r9"}
	claim.stamp()
	raw, err := json.Marshal(claim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ledger.Put(t.Context(), buildKey("x"), raw, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a released claim", func() bool { return read().Status == statusReleased })
	if r := read(); r.Owner != "" || r.Attempt != 3 || r.Lost != 1 {
		t.Errorf("record = %+v, want attempt 3 of nobody, lost once", r)
	}
}

func TestOneWorkerReconcilesUntilItIsSilent(t *testing.T) {
	t.Parallel()
	b := reconciling(t)
	b.cfg.Reconcile = 400 * time.Millisecond
	b.start(t)
	owner := func() string {
		raw, _, err := b.ledger.Get(context.Background(), reconcilerKey)
		var r reconcilerRecord
		if err != nil || json.Unmarshal(raw, &r) != nil {
			return ""
		}
		return r.Owner
	}
	eventually(t, "the first owner", func() bool { return owner() == "w1" })
	b.another(t, "w2")
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	if got := owner(); got != "w1" {
		t.Errorf("owner is %s while w1 renews", got)
	}
	b.stop()
	<-b.done
	eventually(t, "the second owner", func() bool { return owner() == "w2" })
}

// TestTheNewestRequestHasTheTag: requests for one tag end in any order, and the newest
// has it afterwards.
func TestTheNewestRequestHasTheTag(t *testing.T) {
	t.Parallel()
	slow, fast := newGate(), newGate()
	b := setup(t, func(b *bundle) {
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			if plan.RequestID == "first" {
				return slow.run(ctx, plan, logs)
			}
			return fast.run(ctx, plan, logs)
		}
	})
	first := b.queue.add(b.request("first", b.spec("echo 1"), nil))
	slow.await(t)
	close(fast.open)
	b.queue.add(b.request("second", b.spec("echo 2"), nil)).end(t)
	newest := b.completed(t).Digest
	close(slow.open)
	first.end(t)
	if got := b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest"); got != newest {
		t.Errorf("tag is at %s, want %s of the second request", got, newest)
	}
	for _, e := range b.stream.of(events.TypeBuildCompleted) {
		if c := e.Data.(*events.BuildCompleted); c.RequestID == "first" && (c.Digest == newest || c.Reason == "") {
			t.Errorf("completed = %+v, want its own image", c)
		}
	}
}
