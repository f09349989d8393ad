package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events/natsbus"
)

// watched collects what a watch shows and refuses what it must not show.
type watched struct {
	t       *testing.T
	changes chan natsbus.Change
	last    uint64
	synced  bool
	live    map[string]string
}

// watchBacklog starts a watch that ends with the test.
func watchBacklog(t *testing.T, bus *natsbus.Bus) *watched {
	t.Helper()
	backlog := must(bus.Backlog(t.Context()))
	w := &watched{t: t, changes: make(chan natsbus.Change, 20_000), live: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- backlog.Watch(ctx, func(c natsbus.Change) bool {
			w.changes <- c
			return true
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch() = %v, want the context's error", err)
		}
	})
	return w
}

// next is the next change; it fails the test for one that is shown twice or out of order.
func (w *watched) next() natsbus.Change {
	w.t.Helper()
	select {
	case c := <-w.changes:
		switch {
		case c.Synced && (w.synced || c.Key != "" || c.Revision != 0):
			w.t.Fatalf("synced again, or with a key: %+v", c)
		case c.Synced:
			w.synced = true
		case c.Revision != 0 && c.Revision <= w.last, c.Revision == 0 && !c.Deleted:
			w.t.Fatalf("%+v comes after revision %d", c, w.last)
		case c.Deleted:
			if _, ok := w.live[c.Key]; !ok {
				w.t.Fatalf("a key without a value was deleted: %+v", c)
			}
			delete(w.live, c.Key)
		default:
			w.live[c.Key] = string(c.Value)
		}
		w.last = max(w.last, c.Revision)
		return c
	case <-time.After(30 * time.Second):
		w.t.Fatalf("no change comes after revision %d", w.last)
		return natsbus.Change{}
	}
}

// until reads changes until the condition holds.
func (w *watched) until(condition func() bool) {
	w.t.Helper()
	for !condition() {
		w.next()
	}
}

func TestWatchShowsWhatIsStoredAndThenWhatChanges(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	backlog := must(bus.Backlog(t.Context()))
	empty := watchBacklog(t, bus)
	if c := empty.next(); !c.Synced {
		t.Errorf("of an empty bucket: %+v", c)
	}
	a := must(backlog.Put(t.Context(), "request.1", []byte("a"), 0))
	b := must(backlog.Put(t.Context(), "request.2", []byte("b"), 0))
	gone := must(backlog.Put(t.Context(), "request.3", []byte("gone"), 0))
	if err := backlog.Delete(t.Context(), "request.3", gone); err != nil {
		t.Fatal(err)
	}
	a2 := must(backlog.Put(t.Context(), "request.1", []byte("a2"), a))
	w := watchBacklog(t, bus)
	got := []natsbus.Change{w.next(), w.next(), w.next()}
	c := must(backlog.Put(t.Context(), "request.4", []byte("c"), 0))
	if err := backlog.Delete(t.Context(), "request.2", b); err != nil {
		t.Fatal(err)
	}
	got = append(got, w.next(), w.next())
	want := []natsbus.Change{
		{Key: "request.2", Value: []byte("b"), Revision: b},
		{Key: "request.1", Value: []byte("a2"), Revision: a2},
		{Synced: true},
		{Key: "request.4", Value: []byte("c"), Revision: c},
		{Key: "request.2", Revision: c + 1, Deleted: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	// The earlier watch may have missed what came and went, but ends at the same.
	empty.until(func() bool { return cmp.Equal(empty.live, map[string]string{"request.1": "a2", "request.4": "c"}) })
}

func TestWatchEndsWhenItsVisitorHasEnough(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	backlog := must(bus.Backlog(t.Context()))
	if err := backlog.Watch(t.Context(), func(c natsbus.Change) bool { return !c.Synced }); err != nil {
		t.Errorf("Watch() = %v", err)
	}
	must(backlog.Put(t.Context(), "request.1", nil, 0))
	visits := 0
	if err := backlog.Watch(t.Context(), func(natsbus.Change) bool { visits++; return false }); err != nil || visits != 1 {
		t.Errorf("Watch() = %v after %d visits", err, visits)
	}
	stream := must(bus.JetStream().Stream(t.Context(), "KV_KILN_BACKLOG"))
	if n := stream.CachedInfo().State.Consumers; n != 0 {
		t.Errorf("the watches left %d consumers behind", n)
	}
}

func TestWatchOfTheLedgerFiltersAndMayLeaveOutWhatIsStored(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	ledger := must(bus.Ledger(t.Context()))
	old := must(ledger.Put(t.Context(), "build.old", []byte("1"), 0))
	must(ledger.Put(t.Context(), "request.x", []byte("1"), 0))
	got := map[bool][]string{}
	for _, updatesOnly := range []bool{false, true} {
		var revision uint64
		err := ledger.Watch(t.Context(), "build.*", updatesOnly, func(c natsbus.Change) bool {
			got[updatesOnly] = append(got[updatesOnly], fmt.Sprintf("%s=%s %t %t", c.Key, c.Value, c.Deleted, c.Synced))
			if c.Synced {
				must(ledger.Put(t.Context(), "request.x"+strconv.FormatBool(updatesOnly), nil, 0))
				revision = must(ledger.Put(t.Context(), "build.new"+strconv.FormatBool(updatesOnly), []byte("2"), 0))
			}
			if c.Revision == revision && revision != 0 {
				if err := ledger.Delete(t.Context(), c.Key, revision); err != nil {
					t.Error(err)
				}
			}
			return !c.Deleted
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[bool][]string{
		false: {"build.old=1 false false", "= false true", "build.newfalse=2 false false", "build.newfalse= true false"},
		true:  {"= false true", "build.newtrue=2 false false", "build.newtrue= true false"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if _, revision, err := ledger.Get(t.Context(), "build.old"); revision != old || err != nil {
		t.Errorf("Get() = %d, %v", revision, err)
	}
}

// Ten thousand waiting requests, half of which change while they are read.
func TestWatchOfALargeBacklogMissesNothing(t *testing.T) {
	t.Parallel()
	const keys = 10_000
	bus := newBus(t, natsbus.Topology{})
	js := bus.JetStream()
	publish := func(i int, value string) {
		if _, err := js.PublishAsync("$KV.KILN_BACKLOG.request."+strconv.Itoa(i), []byte(value), jetstream.WithStallWait(time.Minute)); err != nil {
			t.Error(err)
		}
	}
	for i := range keys {
		publish(i, "first")
	}
	<-js.PublishAsyncComplete()
	began := time.Now()
	w := watchBacklog(t, bus)
	w.next()
	for i := range keys / 2 {
		publish(i, "second")
	}
	w.until(func() bool { return w.synced })
	t.Logf("%d keys in %s", keys, time.Since(began))
	if len(w.live) != keys {
		t.Errorf("%d keys before Synced, want %d", len(w.live), keys)
	}
	<-js.PublishAsyncComplete()
	w.until(func() bool { return w.last == keys+keys/2 })
	for i := range keys {
		if want := []string{"second", "first"}[i/(keys/2)]; w.live["request."+strconv.Itoa(i)] != want {
			t.Fatalf("request.%d = %s, want %s", i, w.live["request."+strconv.Itoa(i)], want)
		}
	}
}

func TestWatchSurvivesARestart(t *testing.T) {
	t.Parallel()
	r := newRestartable(t)
	bus := r.bus()
	backlog := must(bus.Backlog(t.Context()))
	kept := must(backlog.Put(t.Context(), "request.1", []byte("kept"), 0))
	deleted := must(backlog.Put(t.Context(), "request.2", []byte("deleted"), 0))
	w := watchBacklog(t, bus)
	w.until(func() bool { return w.synced })
	for round := range 3 {
		r.down()
		r.up()
		if round == 0 {
			if err := backlog.Delete(t.Context(), "request.2", deleted); err != nil {
				t.Fatal(err)
			}
		}
		kept = must(backlog.Put(t.Context(), "request.1", fmt.Append(nil, round), kept))
		w.until(func() bool { return w.last == kept })
	}
	if diff := cmp.Diff(map[string]string{"request.1": "2"}, w.live); diff != "" || len(w.changes) != 0 {
		t.Errorf("%d changes too many, and (-want +got):\n%s", len(w.changes), diff)
	}
}

// A bucket that is made anew has forgotten everything, also its revisions.
func TestWatchNoticesThatTheBucketIsAnother(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	backlog := must(bus.Backlog(t.Context()))
	must(backlog.Put(t.Context(), "request.1", []byte("lost"), 0))
	var got []natsbus.Change
	replaced := false
	err := backlog.Watch(t.Context(), func(c natsbus.Change) bool {
		got = append(got, c)
		if c.Synced && !replaced {
			replaced = true
			if err := bus.JetStream().DeleteStream(t.Context(), "KV_KILN_BACKLOG"); err != nil {
				t.Error(err)
			}
			must(natsbus.Provision(t.Context(), bus.JetStream(), natsbus.Topology{}))
			must(backlog.Put(t.Context(), "request.2", []byte("new"), 0))
		}
		return !c.Deleted
	})
	want := []natsbus.Change{
		{Key: "request.1", Value: []byte("lost"), Revision: 1},
		{Synced: true},
		{Key: "request.2", Value: []byte("new"), Revision: 1},
		{Key: "request.1", Deleted: true},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, changes (-want +got):\n%s", err, diff)
	}
}

func TestReplicatedBacklogIsWatchedThroughTheLossOfItsLeader(t *testing.T) {
	t.Parallel()
	servers := startCluster(t)
	topology := natsbus.Topology{Replicas: 3}
	bus := busAt(t, servers[0], topology)
	eventually(t, "provisioned", func() bool {
		_, err := natsbus.Provision(t.Context(), bus.JetStream(), topology)
		return err == nil
	})
	backlog := must(bus.Backlog(t.Context()))
	revision := must(backlog.Put(t.Context(), "request.1", []byte("0"), 0))
	for name, err := range map[string]error{
		"a wrong revision": backlog.Delete(t.Context(), "request.1", revision+7),
		"no value":         backlog.Delete(t.Context(), "request.2", revision),
	} {
		if !errors.Is(err, natsbus.ErrConflict) {
			t.Errorf("deleting %s = %v, want ErrConflict", name, err)
		}
	}
	w := watchBacklog(t, bus)
	w.until(func() bool { return w.synced && len(w.live) == 1 })
	leader := must(bus.JetStream().Stream(t.Context(), "KV_KILN_BACKLOG")).CachedInfo().Cluster.Leader
	for _, s := range servers {
		if s.Name() == leader {
			s.Shutdown()
			s.WaitForShutdown()
		}
	}
	eventually(t, "changed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := backlog.Put(ctx, "request.1", []byte("1"), revision)
		return err == nil || errors.Is(err, natsbus.ErrConflict) // the echo of one whose answer was lost
	})
	_, revision, err := backlog.Get(t.Context(), "request.1")
	if err != nil {
		t.Fatal(err)
	}
	w.until(func() bool { return w.live["request.1"] == "1" && w.last == revision })
	eventually(t, "deleted", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := backlog.Delete(ctx, "request.1", revision)
		return err == nil || errors.Is(err, natsbus.ErrConflict)
	})
	w.until(func() bool { return len(w.live) == 0 })
}

func TestBucketsDeleteByRevision(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	type bucket interface {
		Get(ctx context.Context, key string) ([]byte, uint64, error)
		Put(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
		Delete(ctx context.Context, key string, revision uint64) error
	}
	for name, b := range map[string]bucket{"ledger": must(bus.Ledger(t.Context())), "backlog": must(bus.Backlog(t.Context()))} {
		first := must(b.Put(t.Context(), "k.1", []byte("1"), 0))
		second := must(b.Put(t.Context(), "k.1", []byte("2"), first))
		for _, wrong := range []uint64{0, first, second + 1} {
			if err := b.Delete(t.Context(), "k.1", wrong); !errors.Is(err, natsbus.ErrConflict) {
				t.Errorf("%s: Delete(revision %d) = %v, want ErrConflict", name, wrong, err)
			}
		}
		if err := b.Delete(t.Context(), "k.1", second); err != nil {
			t.Errorf("%s: Delete() = %v", name, err)
		}
		if _, _, err := b.Get(t.Context(), "k.1"); !errors.Is(err, natsbus.ErrNotFound) {
			t.Errorf("%s: Get() of a deleted key = %v", name, err)
		}
		if err := b.Delete(t.Context(), "k.1", second); !errors.Is(err, natsbus.ErrConflict) {
			t.Errorf("%s: deleting twice = %v, want ErrConflict", name, err)
		}
		if _, err := b.Put(t.Context(), "k.1", []byte("3"), second); !errors.Is(err, natsbus.ErrConflict) {
			t.Errorf("%s: update of a deleted key = %v, want ErrConflict", name, err)
		}
		if _, err := b.Put(t.Context(), "k.1", []byte("3"), 0); err != nil {
			t.Errorf("%s: creating it again = %v", name, err)
		}
	}
}

func TestStoredRequestIsReadAsItWasDelivered(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	queue := must(bus.Queue(t.Context()))
	msg := &nats.Msg{Subject: "build.requested", Header: nats.Header{"Nats-Msg-Id": {"r"}, "ce-specversion": {"1.0"}, "X": {"a", "b"}}, Data: []byte("data\x00")}
	if _, err := bus.JetStream().PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	publishRequest(t, bus, "second")
	for range 2 {
		d := must(queue.Next(t.Context()))
		got, err := queue.Read(t.Context(), d.Sequence())
		if diff := cmp.Diff(d.Event(), got); diff != "" || err != nil {
			t.Errorf("Read() = %v (-delivered +read):\n%s", err, diff)
		}
	}
	if err := must(bus.JetStream().Stream(t.Context(), "BUILD")).DeleteMsg(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, sequence := range []uint64{1, 99} {
		if _, err := queue.Read(t.Context(), sequence); !errors.Is(err, natsbus.ErrNotFound) {
			t.Errorf("Read(%d) = %v, want ErrNotFound", sequence, err)
		}
	}
}

func TestCancelsDoNotWaitBehindRequests(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{MaxAckPending: 1})
	queue, cancels := must(bus.Queue(t.Context())), must(bus.Cancels(t.Context()))
	for i := range 3 {
		publishRequest(t, bus, strconv.Itoa(i))
	}
	must(queue.Next(t.Context()))
	if _, err := bus.JetStream().Publish(t.Context(), "build.cancel", []byte("stop"), jetstream.WithMsgID("c")); err != nil {
		t.Fatal(err)
	}
	d := must(cancels.Next(t.Context()))
	if d.Event().Subject != "build.cancel" || string(d.Event().Data) != "stop" || d.Sequence() != 4 {
		t.Errorf("got %+v", d.Event())
	}
	if err := d.Ack(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two requests and no cancel are pending", func() bool {
		return must(queue.Pending(t.Context())) == 2 && must(cancels.Pending(t.Context())) == 0
	})
}
