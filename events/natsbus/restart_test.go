package natsbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"kiln/events"
	"kiln/events/natsbus"
)

// restartable is a server on a port and a store of its own that can go away and
// come back.
type restartable struct {
	t    *testing.T
	opts server.Options
	s    *server.Server
}

// freePort is a port of this machine that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func newRestartable(t *testing.T) *restartable {
	t.Helper()
	r := &restartable{t: t, opts: server.Options{Host: "127.0.0.1", Port: freePort(t), JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}}
	r.up()
	t.Cleanup(r.down)
	return r
}

func (r *restartable) up() {
	r.t.Helper()
	opts := r.opts
	s, err := server.NewServer(&opts)
	if err != nil {
		r.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		r.t.Fatal("server does not start")
	}
	r.s = s
}

func (r *restartable) down() {
	if r.s != nil {
		r.s.Shutdown()
		r.s.WaitForShutdown()
		r.s = nil
	}
}

func (r *restartable) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", r.opts.Port) }

// bus returns a provisioned bus that reconnects at once.
func (r *restartable) bus() *natsbus.Bus {
	r.t.Helper()
	nc, err := natsbus.Connect(natsbus.Config{
		URL: r.url(), Options: []nats.Option{nats.ReconnectWait(20 * time.Millisecond)},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(nc.Close)
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := natsbus.Provision(r.t.Context(), bus.JetStream(), natsbus.Topology{}); err != nil {
		r.t.Fatal(err)
	}
	return bus
}

func TestReadingEndsWithItsContextWhateverTheServerDoes(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(*testing.T, *restartable, *natsbus.Bus){
		"server away": func(_ *testing.T, r *restartable, _ *natsbus.Bus) { r.down() },
		"stream gone": func(t *testing.T, _ *restartable, bus *natsbus.Bus) {
			t.Helper()
			if err := bus.JetStream().DeleteStream(t.Context(), "BUILD"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRestartable(t)
			bus := r.bus()
			if err := bus.Publish(t.Context(), failed("first")); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen := make(chan struct{})
			done := make(chan error, 1)
			go func() {
				done <- bus.Follow(ctx, []events.Type{events.TypeBuildFailed}, natsbus.Start{}, func(events.Message) bool {
					close(seen)
					return true
				})
			}()
			<-seen
			disturb(t, r, bus)
			// Long enough for the reader to be in the middle of coming back.
			time.Sleep(time.Second)
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Follow() = %v, want the context's error", err)
				}
			case <-time.After(2 * time.Second):
				t.Fatal("Follow() does not end with its context")
			}
		})
	}
}

func TestFollowersAndQueueSurviveARestart(t *testing.T) {
	t.Parallel()
	r := newRestartable(t)
	bus := r.bus()
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	publishRequest(t, bus, "in progress")
	first, err := queue.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	logs := bus.Logs().Open("b1", 1)
	lines := make(chan string, 10)
	logDone := make(chan error, 1)
	go func() {
		logDone <- bus.Logs().Read(t.Context(), "b1", 1, true, writerFunc(func(p []byte) (int, error) {
			lines <- string(p)
			return len(p), nil
		}))
	}()
	fmt.Fprintln(logs, "before")
	if got := <-lines; got != "before\n" {
		t.Errorf("followed %q", got)
	}

	r.down()
	fmt.Fprintln(logs, "meanwhile")
	r.up()

	if got := <-lines; got != "meanwhile\n" {
		t.Errorf("followed %q", got)
	}
	if err := logs.Close(); err != nil {
		t.Error(err)
	}
	if err := <-logDone; err != nil {
		t.Error(err)
	}
	if err := first.InProgress(t.Context()); err != nil {
		t.Error(err)
	}
	if err := first.Ack(t.Context()); err != nil {
		t.Error(err)
	}
	publishRequest(t, bus, "after")
	second := nextSoon(t, queue)
	if string(second.Event().Data) != "after" {
		t.Errorf("fetched %q, want the request that came after the restart", second.Event().Data)
	}
	var all bytes.Buffer
	if err := bus.Logs().Read(t.Context(), "b1", 0, false, &all); err != nil || all.String() != "before\nmeanwhile\n" {
		t.Errorf("log = %q, %v", all.String(), err)
	}
}

func TestProgressFailsWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	r := newRestartable(t)
	bus := r.bus()
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	publishRequest(t, bus, "r")
	d := nextSoon(t, queue)
	if err := d.InProgress(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.down()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := d.InProgress(ctx); err == nil {
		t.Error("InProgress() succeeds without a server: a worker would not notice that it lost its message")
	}
	r.up()
}

// nextSoon calls Next as a worker does: errors are temporary.
func nextSoon(t *testing.T, queue *natsbus.Queue) *natsbus.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		d, err := queue.Next(ctx)
		if err == nil {
			return d
		}
		if ctx.Err() != nil {
			t.Fatalf("no request comes: %v", err)
		}
	}
}
