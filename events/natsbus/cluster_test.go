package natsbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events/natsbus"
)

// startCluster runs three servers that elected a leader.
func startCluster(t *testing.T) []*server.Server {
	t.Helper()
	ports := []int{freePort(t), freePort(t), freePort(t)}
	routes := server.RoutesFromStr(fmt.Sprintf("nats://127.0.0.1:%d,nats://127.0.0.1:%d,nats://127.0.0.1:%d", ports[0], ports[1], ports[2]))
	var all []*server.Server
	for i, port := range ports {
		s, err := server.NewServer(&server.Options{
			Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			ServerName: "n" + strconv.Itoa(i), Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		s.Start()
		all = append(all, s)
	}
	eventually(t, "the cluster elects a leader", func() bool {
		for _, s := range all {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == len(all)
			}
		}
		return false
	})
	return all
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// busAt returns a bus that is connected to one server, and knows the others.
func busAt(t *testing.T, s *server.Server, topology natsbus.Topology) *natsbus.Bus {
	t.Helper()
	nc, err := natsbus.Connect(natsbus.Config{URL: s.ClientURL(), Options: []nats.Option{nats.ReconnectWait(20 * time.Millisecond)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	bus, err := natsbus.New(nc, topology)
	if err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestReplicatedLedgerConflictsAndReadsItsWrites(t *testing.T) {
	t.Parallel()
	servers := startCluster(t)
	topology := natsbus.Topology{Replicas: 3}
	buses := []*natsbus.Bus{busAt(t, servers[0], topology), busAt(t, servers[1], topology), busAt(t, servers[2], topology)}
	eventually(t, "provisioned", func() bool {
		_, err := natsbus.Provision(t.Context(), buses[0].JetStream(), topology)
		return err == nil
	})
	var ledgers []*natsbus.Ledger
	for _, bus := range buses {
		ledger, err := bus.Ledger(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ledgers = append(ledgers, ledger)
	}
	revision, err := ledgers[0].Put(t.Context(), "k", []byte("0"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledgers[1].Put(t.Context(), "k", []byte("x"), 0); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("creating twice = %v, want ErrConflict", err)
	}
	if _, err := ledgers[2].Put(t.Context(), "k", []byte("x"), revision+7); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("a wrong revision = %v, want ErrConflict", err)
	}
	for i := range 100 {
		writer, reader := ledgers[i%3], ledgers[(i+1)%3]
		if revision, err = writer.Put(t.Context(), "k", fmt.Append(nil, i), revision); err != nil {
			t.Fatal(err)
		}
		if value, got, err := reader.Get(t.Context(), "k"); err != nil || got != revision || string(value) != strconv.Itoa(i) {
			t.Fatalf("Get() = %s, %d, %v right after Put(%d) = %d", value, got, err, i, revision)
		}
	}
}

func TestWorkSurvivesTheLossOfALeader(t *testing.T) {
	t.Parallel()
	servers := startCluster(t)
	topology := natsbus.Topology{Replicas: 3}
	bus := busAt(t, servers[0], topology)
	eventually(t, "provisioned", func() bool {
		_, err := natsbus.Provision(t.Context(), bus.JetStream(), topology)
		return err == nil
	})
	queue, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	publishRequest(t, bus, "first")
	first := nextSoon(t, queue)
	logs := bus.Logs().Open("b1", 1)
	fmt.Fprintln(logs, "before")

	stop(t, servers, bus)

	fmt.Fprintln(logs, "after")
	soon := func(call func(context.Context) error) func() bool {
		return func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return call(ctx) == nil
		}
	}
	eventually(t, "progress is confirmed again", soon(first.InProgress))
	eventually(t, "the ack is confirmed", soon(first.Ack))
	if err := bus.Publish(t.Context(), failed("r")); err != nil {
		t.Error(err)
	}
	if err := logs.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "a request is stored", func() bool {
		_, err := bus.JetStream().Publish(t.Context(), "build.requested", []byte("second"), jetstream.WithMsgID("second"))
		return err == nil
	})
	if d := nextSoon(t, queue); string(d.Event().Data) != "second" {
		t.Errorf("fetched %q", d.Event().Data)
	}
	var text bytes.Buffer
	if err := bus.Logs().Read(t.Context(), "b1", 1, true, &text); err != nil || text.String() != "before\nafter\n" {
		t.Errorf("log = %q, %v", text.String(), err)
	}
}

// stop ends the server that leads the workers' consumer.
func stop(t *testing.T, servers []*server.Server, bus *natsbus.Bus) {
	t.Helper()
	consumer, err := bus.JetStream().Consumer(t.Context(), "BUILD", "build-workers")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		if s.Name() == consumer.CachedInfo().Cluster.Leader {
			s.Shutdown()
			s.WaitForShutdown()
			return
		}
	}
	t.Fatalf("no server is the leader %+v", consumer.CachedInfo().Cluster)
}
