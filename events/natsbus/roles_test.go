package natsbus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"kiln/events"
	"kiln/events/natsbus"
)

// startWithRoles runs a provisioned server with the permissions of deploy/nats.
func startWithRoles(t *testing.T) *server.Server {
	t.Helper()
	dir := t.TempDir()
	roles := must(os.ReadFile(filepath.Join("..", "..", "deploy", "nats", natsbus.RolesFile)))
	conf := fmt.Appendf(nil, "include \"roles.conf\"\njetstream: {store_dir: %q}\naccounts: {KILN: {jetstream: enabled, users: [\n", dir)
	for _, role := range natsbus.Roles() {
		conf = fmt.Appendf(conf, "{user: %s, password: x, permissions: $%s}\n", role, natsbus.RoleVariable(role))
	}
	conf = append(conf, "]}}\n"...)
	path := filepath.Join(dir, "nats.conf")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "roles.conf"), roles, 0o600), os.WriteFile(path, conf, 0o600)); err != nil {
		t.Fatal(err)
	}
	opts := must(server.ProcessConfigFile(path))
	s := startServer(t, func(o *server.Options) {
		*o = *opts
		o.DontListen, o.NoLog, o.NoSigs = true, true, true
	})
	must(natsbus.Provision(t.Context(), busAs(t, s, natsbus.RoleOperator).JetStream(), natsbus.Topology{}))
	return s
}

// busAs returns the bus of a user in that role, who is told of nothing forbidden.
func busAs(t *testing.T, s *server.Server, role natsbus.Role) *natsbus.Bus {
	t.Helper()
	nc, err := natsbus.Connect(natsbus.Config{
		User: string(role), Password: "x", InboxPrefix: natsbus.Topology{}.InboxPrefix(role),
		Options: []nats.Option{nats.InProcessServer(s), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			t.Errorf("%s: %v", role, err)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return must(natsbus.New(nc, natsbus.Topology{}))
}

func TestRolesSufficeForTheLifeOfARequest(t *testing.T) {
	t.Parallel()
	s := startWithRoles(t)
	heard := make(chan string, 10)
	subscriber := busAs(t, s, natsbus.RoleSubscriber).JetStream().Conn()
	for _, subject := range []string{"build.queued", "build.canceled"} {
		must(subscriber.Subscribe(subject, func(m *nats.Msg) { heard <- m.Subject }))
	}
	if err := subscriber.Flush(); err != nil {
		t.Fatal(err)
	}
	client, worker := busAs(t, s, natsbus.RoleClient), busAs(t, s, natsbus.RoleWorker)
	publish := func(bus *natsbus.Bus, subjects ...string) {
		for _, subject := range subjects {
			must(bus.JetStream().Publish(t.Context(), subject, []byte("x")))
		}
	}
	publish(client, "build.requested", "build.cancel", "run.requested", "run.cancel")
	publish(worker, "build.queued", "build.canceled", "build.dead", "build.requested", "build.cancel", "run.waiting", "run.failed", "run.log.x")
	if got := []string{<-heard, <-heard}; !slices.Contains(got, "build.queued") || !slices.Contains(got, "build.canceled") {
		t.Errorf("the subscriber heard %s", got)
	}

	requests, cancels := must(worker.Queue(t.Context())), must(worker.Cancels(t.Context()))
	runs, runCancels, builds := must(worker.RunRequests(t.Context())), must(worker.RunCancels(t.Context())), must(worker.RunBuilds(t.Context()))
	for _, queue := range []*natsbus.Queue{requests, cancels, runs, runCancels, builds} {
		d := must(queue.Next(t.Context()))
		must(queue.Read(t.Context(), d.Sequence()))
		must(queue.Pending(t.Context()))
		if err := errors.Join(d.InProgress(t.Context()), d.Ack(t.Context())); err != nil {
			t.Error(err)
		}
	}
	watchesAsWorker(t, worker)
	if found, err := natsbus.Inspect(t.Context(), worker.JetStream(), natsbus.Topology{}); err != nil || len(found.Present) != 13 {
		t.Errorf("Inspect() = %+v, %v", found, err)
	}
	var dead []string
	err := client.Scan(t.Context(), []events.Type{events.TypeBuildDead}, natsbus.Start{}, func(m events.Message) bool {
		dead = append(dead, m.Subject)
		return true
	})
	if err != nil || !slices.Equal(dead, []string{"build.dead"}) {
		t.Errorf("the client reads %v, %v", dead, err)
	}
}

// watchesAsWorker writes to, deletes from and watches both buckets.
func watchesAsWorker(t *testing.T, worker *natsbus.Bus) {
	t.Helper()
	ledger, backlog := must(worker.Ledger(t.Context())), must(worker.Backlog(t.Context()))
	type put = func(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	type remove = func(ctx context.Context, key string, revision uint64) error
	changing := func(put put, remove remove) func(natsbus.Change) bool {
		return func(c natsbus.Change) bool {
			if c.Synced {
				if err := remove(t.Context(), "build.x", must(put(t.Context(), "build.x", nil, 0))); err != nil {
					t.Error(err)
				}
			}
			return !c.Deleted
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := ledger.Watch(ctx, "build.*", true, changing(ledger.Put, ledger.Delete)); err != nil {
		t.Error(err)
	}
	// Without updatesOnly a key that came and went before it was visited is not shown.
	revision := must(backlog.Put(ctx, "request.1", nil, 0))
	err := backlog.Watch(ctx, func(c natsbus.Change) bool {
		if c.Synced {
			if err := backlog.Delete(ctx, "request.1", revision); err != nil {
				t.Error(err)
			}
		}
		return !c.Deleted
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOnlyWorkersTouchTheBacklogAndTheCancels(t *testing.T) {
	t.Parallel()
	s := startWithRoles(t)
	const c, w, o = natsbus.RoleClient, natsbus.RoleWorker, natsbus.RoleOperator
	for subject, may := range map[string][]natsbus.Role{
		"build.requested": {natsbus.RolePublisher, c, w}, "build.cancel": {c, w}, "build.queued": {w}, "build.canceled": {w}, "build.dead": {w},
		"run.requested": {natsbus.RolePublisher, c}, "run.cancel": {c}, "run.waiting": {w}, "run.completed": {w}, "run.log.x": {w},
		"$KV.KILN_RUNS.run.x": {w}, "$JS.API.CONSUMER.MSG.NEXT.RUN.run-triggers": {w}, "$JS.API.CONSUMER.DELETE.RUN.run-cancels": {o},
		"$JS.API.CONSUMER.CREATE.RUN.x": {c, w}, "$JS.API.CONSUMER.CREATE.RUN_LOG.x": {c, w}, "$JS.ACK.BUILD.run-builds.1.1.1.1.0": {w},
		"$KV.KILN_BACKLOG.request.1": {w}, "$JS.API.STREAM.MSG.GET.KV_KILN_BACKLOG": {w, o}, "$JS.API.STREAM.INFO.KV_KILN_BACKLOG": {w, o},
		"$JS.API.CONSUMER.CREATE.KV_KILN_BACKLOG.x": {w}, "$JS.API.CONSUMER.CREATE.KV_KILN_LEDGER.x": {w}, "$JS.API.STREAM.PURGE.KV_KILN_BACKLOG": {o},
		"$JS.API.STREAM.MSG.GET.BUILD": {w, o}, "$JS.API.STREAM.MSG.DELETE.BUILD": {o},
		"$JS.API.CONSUMER.MSG.NEXT.BUILD.build-cancels": {w}, "$JS.API.CONSUMER.INFO.BUILD.build-cancels": {w, o},
		"$JS.API.CONSUMER.CREATE.BUILD.build-cancels": {o}, "$JS.API.CONSUMER.CREATE.BUILD.build-cancels.build.cancel": {o},
		"$JS.API.CONSUMER.DELETE.BUILD.build-cancels": {o}, "$JS.ACK.BUILD.build-cancels.1.1.1.1.0": {w},
	} {
		for _, role := range natsbus.Roles() {
			if got := mayPublish(t, s, role, subject); got != slices.Contains(may, role) {
				t.Errorf("%s may publish %s: %t", role, subject, got)
			}
		}
	}
}

// mayPublish asks the server, whose refusal comes before the answer to the flush.
func mayPublish(t *testing.T, s *server.Server, role natsbus.Role, subject string) bool {
	t.Helper()
	nc := must(nats.Connect("", nats.InProcessServer(s), nats.UserInfo(string(role), "x"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})))
	defer nc.Close()
	if err := errors.Join(nc.Publish(subject, nil), nc.Flush()); err != nil {
		t.Fatal(err)
	}
	err := nc.LastError()
	if err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		t.Fatal(err)
	}
	return err == nil
}
