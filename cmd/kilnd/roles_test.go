package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/function"
	"kiln/builder/registry"
	"kiln/deploy/nats/natstest"
	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
	"kiln/worker"
)

// secured is a server with the configuration of deploy/nats: TLS and a user per role.
type secured struct{ url, ca string }

func startSecured(t *testing.T) secured {
	t.Helper()
	ca := enginetest.NewAuthority(t)
	certificate, key := ca.Issue(t, "127.0.0.1")
	return secured{url: natstest.Start(t, "127.0.0.1", certificate, key), ca: ca.File}
}

// as connects with the settings that a user of that role makes.
func (s secured) as(t *testing.T, role natsbus.Role, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := natsbus.Connect(natsbus.Config{
		URL: s.url, CAFile: s.ca, User: "kiln-" + string(role), Password: natstest.Password, InboxPrefix: natsbus.Topology{}.InboxPrefix(role),
		Options: append([]nats.Option{nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			t.Errorf("%s: %v", role, err)
		})}, opts...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// TestEveryRoleDoesItsJobOnASecuredServer lets one request pass through all roles.
func TestEveryRoleDoesItsJobOnASecuredServer(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	js, err := jetstream.New(s.as(t, natsbus.RoleOperator))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := natsbus.Provision(t.Context(), js, natsbus.Topology{}); err != nil {
			t.Fatal(err)
		}
	}
	heard := hear(t, s.as(t, natsbus.RoleSubscriber))
	base := startRoleWorker(t, s)
	body := fmt.Appendf(nil, `{"kind":"job","metadata":{"name":"f"},"spec":{"build":{"base_image":%q,"commands":["true"],"with_mlrun":false}}}`, base)

	// The publisher is a program in any language: a bare client with usual inboxes.
	publisher, err := nats.Connect(s.url, nats.RootCAs(s.ca), nats.UserInfo("kiln-publisher", natstest.Password))
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	answer, err := publisher.RequestMsg(&nats.Msg{Subject: "build.requested", Header: nats.Header{"Nats-Msg-Id": {"plain"}}, Data: body}, 5*time.Second)
	if err != nil || !strings.Contains(string(answer.Data), `"seq":1`) {
		t.Fatalf("publish = %v, %v", answer, err)
	}
	kiln, err := client.New(s.as(t, natsbus.RoleClient))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first, err := kiln.Await(ctx, client.Ticket{ID: "plain"})
	if err != nil || first.Completed == nil || first.Completed.Outcome != events.OutcomeBuilt {
		t.Fatalf("Await() = %+v, %v", first, err)
	}
	ticket, err := kiln.RequestBuild(ctx, events.BuildRequest{Function: body})
	if err != nil {
		t.Fatal(err)
	}
	second, err := kiln.Await(ctx, ticket)
	if err != nil || second.Completed == nil || second.Completed.Outcome != events.OutcomeReused {
		t.Fatalf("Await() = %+v, %v", second, err)
	}
	var log strings.Builder
	if err := kiln.Logs(ctx, first.Completed.BuildID, 0, true, &log); err != nil || log.Len() == 0 {
		t.Errorf("Logs() = %q, %v", log.String(), err)
	}
	if all, err := kiln.List(ctx, client.Query{}); err != nil || len(all) != 2 {
		t.Errorf("List() = %+v, %v", all, err)
	}
	exchangeContext(t, s)
	for _, want := range []string{"build.started", "build.completed", "build.log." + first.Completed.BuildID} {
		if !heard.has(want) {
			t.Errorf("the subscriber did not hear %s", want)
		}
	}
}

// exchangeContext uploads as a client, twice, and downloads as a worker and as a build.
func exchangeContext(t *testing.T, s secured) {
	t.Helper()
	store := func(role natsbus.Role) *natsbus.ContextStore {
		bus, err := natsbus.New(s.as(t, role), natsbus.Topology{})
		if err != nil {
			t.Fatal(err)
		}
		contexts, err := bus.Contexts(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		return contexts
	}
	content := strings.Repeat("a context of several messages\n", 20000)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content)))
	for range 2 {
		if err := store(natsbus.RoleClient).Put(t.Context(), digest, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []natsbus.Role{natsbus.RoleWorker, natsbus.RoleBuild} {
		r, err := store(role).Open(t.Context(), digest)
		if err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		if raw, err := io.ReadAll(r); err != nil || string(raw) != content {
			t.Errorf("%s reads %d bytes, %v", role, len(raw), err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
}

// subjects collects what a subscriber hears.
type subjects struct {
	mu  sync.Mutex
	all []string
}

func (s *subjects) has(subject string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.all, subject)
}

func hear(t *testing.T, nc *nats.Conn) *subjects {
	t.Helper()
	var heard subjects
	for _, subject := range []string{"build.started", "build.completed", "build.failed", "build.log.*"} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) {
			heard.mu.Lock()
			defer heard.mu.Unlock()
			heard.all = append(heard.all, m.Subject)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return &heard
}

// startRoleWorker runs a worker, whose engine is scripted, as a user of that role. It
// returns a base image.
func startRoleWorker(t *testing.T, s secured) string {
	t.Helper()
	images := enginetest.NewRegistry(t)
	base := enginetest.PushBase(t, images.Host+"/base")
	reg, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: reg}, enginetest.NewFake())
	if err != nil {
		t.Fatal(err)
	}
	bus, err := natsbus.New(s.as(t, natsbus.RoleWorker), natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	requests, err := bus.Queue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	book, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cancels, err := bus.Cancels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unfinished, err := bus.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := requests.Pending(t.Context()); err != nil {
		t.Error(err)
	}
	if found, err := natsbus.Inspect(t.Context(), bus.JetStream(), natsbus.Topology{}); err != nil || len(found.Present) != 13 {
		t.Errorf("Inspect() = %+v, %v", found, err)
	}
	w, err := worker.New(worker.Config{Function: function.Config{Registry: images.Host}}, worker.Deps{
		Queue: queue{requests}, Cancels: queue{cancels}, Publisher: bus, History: stream{bus}, Ledger: ledger{store{book}, book},
		Backlog: unfinishedRequests{store{unfinished}, unfinished}, Logs: bus.Logs(), Builder: b, Log: zerolog.New(zerolog.NewTestWriter(t)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return base.Ref
}

// TestRolesMayDoNothingElse tries every subject that matters as every role. What is not
// named here nobody may.
func TestRolesMayDoNothingElse(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	const p, sub, c, w, b, o = natsbus.RolePublisher, natsbus.RoleSubscriber, natsbus.RoleClient, natsbus.RoleWorker, natsbus.RoleBuild, natsbus.RoleOperator
	publish := map[string][]natsbus.Role{
		"build.requested": {p, c, w}, "run.requested": {p, c}, "run.started": {w}, "run.completed": {w}, "run.log.x": {w}, "run.other": nil,
		"$KV.KILN_RUNS.run.x": {w}, "$JS.API.CONSUMER.CREATE.RUN.x": {c, w}, "$JS.API.CONSUMER.MSG.NEXT.RUN.run-triggers": {w},
		"$JS.API.STREAM.PURGE.KV_KILN_RUNS": {o}, "$JS.ACK.RUN.run-triggers.1.1.1.1.0": {w},
		"build.started": {w}, "build.completed": {w}, "build.failed": {w}, "build.log.x": {w},
		"build.other": nil, "elsewhere": nil,
		"$KV.KILN_LEDGER.build.x": {w}, "$KV.OTHER.x": nil,
		"$JS.API.STREAM.MSG.GET.KV_KILN_LEDGER": {w, o}, "$JS.API.STREAM.MSG.GET.BUILD": {w, o}, "$JS.API.DIRECT.GET.BUILD": nil,
		"$JS.API.STREAM.INFO.BUILD": {w, o}, "$JS.API.STREAM.CREATE.BUILD": {o}, "$JS.API.STREAM.UPDATE.BUILD": {o},
		"$JS.API.STREAM.DELETE.BUILD": {o}, "$JS.API.STREAM.PURGE.KV_KILN_LEDGER": {o}, "$JS.API.STREAM.MSG.DELETE.BUILD": {o},
		"$JS.API.STREAM.CREATE.OTHER": nil, "$JS.API.STREAM.DELETE.OTHER": nil,
		"$JS.API.CONSUMER.CREATE.BUILD.x": {c, w}, "$JS.API.CONSUMER.CREATE.BUILD.x.build.failed": {c, w},
		"$JS.API.CONSUMER.DURABLE.CREATE.BUILD.x": nil, "$JS.API.CONSUMER.MSG.NEXT.BUILD.x": {c, w},
		"$JS.API.CONSUMER.CREATE.BUILD_LOG.x": {c}, "$JS.API.CONSUMER.CREATE.KV_KILN_LEDGER.x": {w},
		"$JS.API.CONSUMER.INFO.BUILD.build-workers": {w, o}, "$JS.API.CONSUMER.MSG.NEXT.BUILD.build-workers": {w},
		"$JS.API.CONSUMER.CREATE.BUILD.build-workers": {o}, "$JS.API.CONSUMER.CREATE.BUILD.build-workers.build.requested": {o},
		"$JS.API.CONSUMER.DELETE.BUILD.build-workers": {o}, "$JS.API.CONSUMER.PAUSE.BUILD.build-workers": {o},
		"$JS.ACK.BUILD.build-workers.1.1.1.1.0": {w}, "$JS.ACK.BUILD.x.1.1.1.1.0": nil,
		"$O.KILN_CONTEXT.C.x": {c}, "$O.KILN_CONTEXT.M.x": {c}, "$JS.API.STREAM.INFO.OBJ_KILN_CONTEXT": {c, w, b, o},
		"$JS.API.STREAM.MSG.GET.OBJ_KILN_CONTEXT": {c, w, b, o}, "$JS.API.STREAM.PURGE.OBJ_KILN_CONTEXT": {o},
		"$JS.API.CONSUMER.CREATE.OBJ_KILN_CONTEXT.x": {w, b}, "$JS.API.CONSUMER.DELETE.OBJ_KILN_CONTEXT.x": {w, b}, "$JS.FC.OBJ_KILN_CONTEXT.x": {w, b},
		"_INBOX.x": nil, "_INBOX_KILN_WORKER.x": nil, "$SYS.REQ.SERVER.PING": nil, "$JS.API.ACCOUNT.PURGE.KILN": nil,
	}
	subscribe := map[string][]natsbus.Role{
		"run.completed": {sub, c}, "run.log.x": {sub, c}, "run.requested": nil, "run.*": nil,
		"build.started": {sub, c}, "build.completed": {sub, c}, "build.failed": {sub, c}, "build.log.*": {sub, c}, "build.log.x": {sub, c},
		"build.requested": nil, "build.*": nil, "build.>": nil, ">": nil, "$KV.>": nil, "$JS.API.>": nil, "$JS.ACK.>": nil, "$SYS.>": nil,
		"_INBOX.>": {p, b}, "_INBOX_KILN_CLIENT.>": {c}, "_INBOX_KILN_WORKER.>": {w}, "_INBOX_KILN_OPERATOR.>": {o}, "*.>": nil, "$JS.EVENT.>": nil,
	}
	for _, role := range natsbus.Roles() {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			nc := s.as(t, role, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			for subject, may := range publish {
				got := attempt(t, nc, func() error { return nc.Publish(subject, nil) })
				if want := slices.Contains(may, role); got != want {
					t.Errorf("may publish %s: %t, want %t", subject, got, want)
				}
			}
			for subject, may := range subscribe {
				got := attempt(t, nc, func() error {
					_, err := nc.SubscribeSync(subject)
					return err
				})
				if want := slices.Contains(may, role); got != want {
					t.Errorf("may subscribe to %s: %t, want %t", subject, got, want)
				}
			}
		})
	}
}

// attempt reports whether the server lets the action pass. Its refusal comes before the
// answer to the flush, and nothing else is under way on the connection.
func attempt(t *testing.T, nc *nats.Conn, action func() error) bool {
	t.Helper()
	before := nc.LastError()
	if err := errors.Join(action(), nc.Flush()); err != nil {
		t.Fatal(err)
	}
	after := nc.LastError()
	if after == nil || after == before { //nolint:errorlint // The very same error, not one like it.
		return true
	}
	if !errors.Is(after, nats.ErrPermissionViolation) {
		t.Fatal(after)
	}
	return false
}

func TestASecuredServerTakesNobodyElse(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	for name, opts := range map[string][]nats.Option{
		"no user":        {nats.RootCAs(s.ca)},
		"wrong password": {nats.RootCAs(s.ca), nats.UserInfo("kiln-worker", "guess")},
		"unknown CA":     {nats.UserInfo("kiln-worker", natstest.Password)},
	} {
		nc, err := nats.Connect(s.url, opts...)
		if err == nil {
			nc.Close()
			t.Errorf("%s: connected", name)
		}
	}
}
