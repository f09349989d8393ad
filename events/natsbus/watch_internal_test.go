package natsbus

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// gate is a way to a server that can be shut.
type gate struct {
	server *server.Server
	mu     sync.Mutex
	shut   bool
	open   []net.Conn
}

// Dial implements nats.CustomDialer.
func (g *gate) Dial(string, string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return nil, errors.New("the gate is shut")
	}
	conn, err := g.server.InProcessConn()
	if err == nil {
		g.open = append(g.open, conn)
	}
	return conn, err
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut = shut; shut {
		for _, conn := range g.open {
			_ = conn.Close()
		}
		g.open = nil
	}
}

func stored(t *testing.T, bus *Bus) uint64 {
	t.Helper()
	stream, err := bus.js.Stream(t.Context(), "KV_KILN_BACKLOG")
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

func waitUntil(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A watch that is away for longer than markers live finds nothing that says what was
// deleted, and has to find out all the same.
func TestWatchNoticesDeletionsOfWhichNothingIsLeft(t *testing.T) {
	t.Parallel()
	opts := &server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	way := &gate{server: s}
	bus := busOn(t, nats.InProcessServer(s))
	if _, err := Provision(t.Context(), bus.js, Topology{}); err != nil {
		t.Fatal(err)
	}
	bucketOf := func(bus *Bus) bucket {
		b, err := bus.bucket(t.Context(), "KILN_BACKLOG", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	here, there := bucketOf(bus), bucketOf(busOn(t, nats.SetCustomDialer(way), nats.ReconnectWait(10*time.Millisecond)))
	var revisions []uint64
	for i := range 3 {
		revision, err := here.Put(t.Context(), "request."+strconv.Itoa(i), []byte("x"), 0)
		if err != nil {
			t.Fatal(err)
		}
		revisions = append(revisions, revision)
	}
	changes, done := make(chan Change, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		done <- there.watch(ctx, ">", false, func(c Change) bool {
			changes <- c
			return true
		})
	}()
	for !(<-changes).Synced { // what is stored is not of interest
	}
	way.set(true)
	if err := here.Delete(t.Context(), "request.1", revisions[1]); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the marker is gone", func() bool { return stored(t, bus) == 2 })
	changed, err := here.Put(t.Context(), "request.2", []byte("y"), revisions[2])
	if err != nil {
		t.Fatal(err)
	}
	way.set(false)
	if c := <-changes; c.Key != "request.2" || c.Revision != changed || string(c.Value) != "y" {
		t.Errorf("first change = %+v", c)
	}
	if c := <-changes; c.Key != "request.1" || !c.Deleted || c.Revision != 0 {
		t.Errorf("second change = %+v", c)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || len(changes) != 0 {
		t.Errorf("watch() = %v, %d more changes", err, len(changes))
	}
}

func busOn(t *testing.T, opts ...nats.Option) *Bus {
	t.Helper()
	nc, err := Connect(Config{Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	bus, err := New(nc, Topology{})
	if err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestDeletedKeysLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	b, err := bus.bucket(t.Context(), "KILN_BACKLOG", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		revision, err := b.Put(t.Context(), "request."+strconv.Itoa(i), []byte("x"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(t.Context(), "request."+strconv.Itoa(i), revision); err != nil {
			t.Fatal(err)
		}
	}
	if n := stored(t, bus); n != 10 {
		t.Errorf("%d markers, want 10", n)
	}
	waitUntil(t, "the markers are gone", func() bool { return stored(t, bus) == 0 })
	if _, err := b.Put(t.Context(), "request.1", []byte("again"), 0); err != nil {
		t.Error(err)
	}
}

func TestEntryThatIsTooOldIsShownAsDeleted(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	cfg := Topology{}.withDefaults().backlogConfig()
	cfg.MaxAge, cfg.Duplicates = 2*time.Second, time.Second
	if _, err := bus.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	backlog, err := bus.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	revision, err := backlog.Put(t.Context(), "request.1", []byte("x"), 0)
	if err != nil {
		t.Fatal(err)
	}
	var last Change
	err = backlog.Watch(t.Context(), func(c Change) bool {
		last = c
		return !c.Deleted
	})
	if err != nil || last.Key != "request.1" || last.Revision <= revision {
		t.Errorf("last change = %+v, %v", last, err)
	}
	if _, _, err := backlog.Get(t.Context(), "request.1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get() = %v", err)
	}
}

var _ nats.CustomDialer = (*gate)(nil)
