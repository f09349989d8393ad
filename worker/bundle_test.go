package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/registry"
	"kiln/events"
	"kiln/schemas"
	"kiln/worker/backlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engineFunc is an engine made of a function; it pushes what it says it built.
type engineFunc func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error)

func (engineFunc) Name() string { return "fake" }

func (f engineFunc) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	return f(ctx, plan, logs)
}

// push is the work of a build that succeeds.
func push(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	fmt.Fprintln(logs, "building", plan.Destination)
	img, err := random.Image(128, 1)
	if err != nil {
		return builder.Result{}, err
	}
	ref, err := name.ParseReference(plan.Destination)
	if err != nil {
		return builder.Result{}, err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return builder.Result{}, err
	}
	digest, err := img.Digest()
	return builder.Result{Digest: digest.String(), Duration: time.Millisecond}, err
}

type bundle struct {
	queue    *memQueue
	stream   *memStream
	cancels  *memQueue
	ledger   memLedger
	backlog  memBacklog
	logs     *memLogs
	registry string
	// faults answers instead of the registry when it returns true.
	faults atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	runs   atomic.Int32
	cfg    Config
	engine engineFunc
	// nuclio and secrets may be nil.
	nuclio  Nuclio
	secrets builder.SecretStore
	limits  builder.Limits
	// history may be nil.
	history History
	// idle starts no worker.
	idle   bool
	worker *Worker
	stop   context.CancelFunc
	done   chan struct{}
}

func setup(t *testing.T, change func(*bundle)) *bundle {
	t.Helper()
	last, entries := &atomic.Uint64{}, newMemBucket()
	b := &bundle{
		queue: newMemQueue(last, entries), cancels: newMemQueue(last, entries), stream: &memStream{last: last},
		ledger: memLedger{newMemBucket()}, backlog: memBacklog{entries}, logs: &memLogs{}, engine: push,
	}
	reg := ggcr.New(ggcr.Logger(nopLogger()))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := b.faults.Load(); f != nil && (*f)(w, r) {
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	b.registry = u.Host
	b.pushBase(t)
	b.cfg = Config{
		Name: "w1", Slots: 2, Lease: 3 * time.Second, SoftStop: 5 * time.Second, MaxAttempts: 4,
		RetryDelay: 10 * time.Millisecond, RetryMaxDelay: 50 * time.Millisecond,
		Function: function.Config{Registry: b.registry},
	}
	if change != nil {
		change(b)
	}
	if !b.idle {
		b.start(t)
	}
	return b
}

// member is one running worker of a bundle.
type member struct {
	worker *Worker
	link   *link
	stop   context.CancelFunc
	done   chan struct{}
}

// start runs a worker on the bundle's queue until the test ends or stop is called.
func (b *bundle) start(t *testing.T) {
	t.Helper()
	m := b.join(t, b.cfg, newLink(1))
	b.worker, b.stop, b.done = m.worker, m.stop, m.done
}

// another runs one more worker under the given name.
func (b *bundle) another(t *testing.T, name string) *member {
	t.Helper()
	cfg := b.cfg
	cfg.Name = name
	return b.join(t, cfg, newLink(2))
}

// join runs a worker behind the link; change, if there is one, sees it before it runs.
func (b *bundle) join(t *testing.T, cfg Config, l *link, change ...func(*Worker)) *member {
	t.Helper()
	reg, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	engine := l.engine(func(ctx context.Context, p builder.Plan, logs io.Writer) (builder.Result, error) {
		b.runs.Add(1)
		return b.engine(ctx, p, logs)
	})
	bld, err := builder.New(builder.Config{Limits: b.limits}, builder.Lookup{Registry: linkRegistry{l, reg}, Secrets: b.secrets}, engine)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(cfg, Deps{
		History: b.history, Queue: linkQueue{l, b.queue}, Cancels: linkQueue{l, b.cancels}, Publisher: linkStream{l, b.stream},
		Ledger: linkLedger{linkStore{l, b.ledger.memBucket}}, Backlog: linkBacklog{linkStore{l, b.backlog.memBucket}},
		Logs: b.logs, Builder: bld, Nuclio: b.nuclio, Log: zerolog.New(zerolog.NewTestWriter(t)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(w)
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &member{worker: w, link: l, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		w.Interrupt()
		<-m.done
		reg.Close()
	})
	return m
}

func (b *bundle) pushBase(t *testing.T) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, mustConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(b.registry + "/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
}

// request is a bare build.requested message under the given id.
func (b *bundle) request(id string, spec map[string]any, top map[string]any) events.Message {
	body := map[string]any{"function": map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "trainer", "project": "demo"}, "spec": spec,
	}}
	maps.Copy(body, top)
	return bare(id, mustJSON(body))
}

func mustJSON(value any) []byte {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return raw
}

func bare(id string, raw []byte) events.Message {
	m := events.Message{Subject: "build.requested", Data: raw, FallbackID: "seq:BUILD:" + strconv.Itoa(len(raw)), Time: time.Now()}
	if id != "" {
		m.Header = map[string][]string{"Nats-Msg-Id": {id}}
	}
	return m
}

// spec is a function that needs a build.
func (b *bundle) spec(commands ...string) map[string]any {
	return map[string]any{"build": map[string]any{
		"base_image": b.registry + "/base:1", "commands": commands, "with_mlrun": false,
	}}
}

// terminals returns the terminal events, each checked against its schema.
func (b *bundle) terminals(t *testing.T) []events.Event {
	t.Helper()
	all := b.stream.of(events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled)
	for _, e := range append(slices.Clone(all), b.stream.of(events.TypeBuildStarted, events.TypeBuildQueued, events.TypeBuildDead)...) {
		data, err := json.Marshal(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := schemas.Validate(string(e.Type), data); err != nil {
			t.Errorf("%s breaks its schema: %v\n%s", e.Type, err, data)
		}
	}
	return all
}

// entryOf returns what the backlog holds for the message.
func (b *bundle) entryOf(t *testing.T, m *memMessage) backlog.Entry {
	t.Helper()
	raw, _, err := b.backlog.Get(t.Context(), backlog.Key(m.sequence))
	if err != nil {
		t.Fatalf("entry of message %d: %v", m.sequence, err)
	}
	e, err := backlog.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (b *bundle) only(t *testing.T) events.Event {
	t.Helper()
	all := b.terminals(t)
	if len(all) != 1 {
		t.Fatalf("got %d terminal events, want exactly 1: %+v", len(all), all)
	}
	return all[0]
}

func (b *bundle) completed(t *testing.T) *events.BuildCompleted {
	t.Helper()
	e := b.only(t)
	c, ok := e.Data.(*events.BuildCompleted)
	if !ok {
		t.Fatalf("got %s, want build.completed: %+v", e.Type, e.Data)
	}
	return c
}

func (b *bundle) failed(t *testing.T) *events.BuildFailed {
	t.Helper()
	e := b.only(t)
	f, ok := e.Data.(*events.BuildFailed)
	if !ok {
		t.Fatalf("got %s, want build.failed: %+v", e.Type, e.Data)
	}
	if f.Error.Hint == "" {
		t.Errorf("failure without a hint: %+v", f.Error)
	}
	return f
}

func (b *bundle) digestOf(t *testing.T, ref string) string {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(r)
	if err != nil {
		t.Fatalf("head %s: %v", ref, err)
	}
	return desc.Digest.String()
}
