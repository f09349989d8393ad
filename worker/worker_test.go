package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestRequestBecomesAnImage(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)

	c := b.completed(t)
	if c.Outcome != events.OutcomeBuilt || c.RequestID != "r1" || c.Attempt != 1 {
		t.Errorf("completed = %+v, want built for r1, attempt 1", c)
	}
	if got := b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest"); got != c.Digest {
		t.Errorf("the user's tag is at %s, want %s", got, c.Digest)
	}
	if got := b.digestOf(t, c.ImageRef); got != c.Digest {
		t.Errorf("image_ref %s is %s, want %s", c.ImageRef, got, c.Digest)
	}
	if got := len(b.stream.of(events.TypeBuildStarted)); got != 1 {
		t.Errorf("got %d build.started, want 1", got)
	}
	if logs := b.logs.all(); !strings.Contains(logs, "building "+b.registry) {
		t.Errorf("log = %q, want the engine's lines", logs)
	}
}

func TestIdenticalRequestIsReusedWithoutRunning(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	other := b.spec("echo hi")
	other["build"].(map[string]any)["image"] = b.registry + "/elsewhere/name:2"
	b.queue.add(b.request("r2", other, nil)).end(t)

	all := b.terminals(t)
	first, second := all[0].Data.(*events.BuildCompleted), all[1].Data.(*events.BuildCompleted)
	if second.Outcome != events.OutcomeReused || second.BuildID != first.BuildID || second.Digest != first.Digest {
		t.Errorf("second = %+v, want the first's build reused", second)
	}
	if got := b.runs.Load(); got != 1 {
		t.Errorf("engine ran %d times, want 1", got)
	}
	if got := b.digestOf(t, b.registry+"/elsewhere/name:2"); got != first.Digest {
		t.Errorf("second target is at %s, want %s", got, first.Digest)
	}
}

func TestRebuildsWhenAskedOrWhenTheImageIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.queue.add(b.request("r2", b.spec("echo hi"), map[string]any{"force_build": true})).end(t)
	second := b.terminals(t)[1].Data.(*events.BuildCompleted)
	if second.Outcome != events.OutcomeBuilt || second.Attempt != 2 {
		t.Errorf("forced = %+v, want built by attempt 2", second)
	}
	ref, err := name.ParseReference(second.ImageRef)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref); err != nil {
		t.Fatal(err)
	}
	b.queue.add(b.request("r3", b.spec("echo hi"), nil)).end(t)
	third := b.terminals(t)[2].Data.(*events.BuildCompleted)
	if third.Outcome != events.OutcomeBuilt || !strings.Contains(third.Reason, "gone") {
		t.Errorf("after deletion = %+v, want built since the image is gone", third)
	}
}

func TestNothingToBuildIsNotNeeded(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", map[string]any{"image": "mlrun/mlrun"}, nil)).end(t)
	if c := b.completed(t); c.Outcome != events.OutcomeNotNeeded || c.Image != "mlrun/mlrun" {
		t.Errorf("completed = %+v, want not_needed with mlrun/mlrun", c)
	}
	if b.runs.Load() != 0 {
		t.Error("the engine ran")
	}
}

func TestSameRequestAgainGivesNoSecondEvent(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.stream.forget = true // long after the duplicate window
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.only(t)
}

func TestSameIDForAnotherRequestIsAConflict(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	second := b.request("r1", b.spec("echo other"), nil)
	b.queue.add(second).end(t)
	all := b.terminals(t)
	f, ok := all[1].Data.(*events.BuildFailed)
	if !ok || f.Error.Code != "conflict" || f.RequestID != second.FallbackID {
		t.Errorf("second = %+v, want a conflict told under %s", all[1].Data, second.FallbackID)
	}
}

func TestLostAckIsAnsweredAgainWithoutASecondEvent(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) { b.stream.forget = true })
	msg := b.request("r1", b.spec("echo hi"), nil)
	b.queue.mu.Lock()
	m := memMessage{q: b.queue, event: msg, sequence: b.queue.last.Add(1), lostAck: true}.init()
	b.queue.mu.Unlock()
	b.queue.ch <- m
	m.end(t)
	b.only(t)
	if got := b.runs.Load(); got != 1 {
		t.Errorf("engine ran %d times, want 1", got)
	}
}

func TestEveryEffectMaySucceedAndStillReportAnError(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("happened=%v", after), func(t *testing.T) {
			t.Parallel()
			const seed = 7
			dice := rand.New(rand.NewPCG(seed, seed))
			var mu sync.Mutex
			fails := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return dice.IntN(3) == 0
			}
			b := setup(t, func(b *bundle) {
				b.cfg.MaxAttempts = 100
				b.ledger.fail = func(string, []byte) (error, bool) {
					if fails() {
						return errors.New("ledger timeout"), after
					}
					return nil, false
				}
				b.stream.fail = func(events.Event) (error, bool) {
					if fails() {
						return errors.New("publish timeout"), after
					}
					return nil, false
				}
			})
			b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
			if c := b.completed(t); c.Digest != b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest") {
				t.Errorf("tag is not at %s", c.Digest)
			}
		})
	}
}

func TestBadInputEndsInOneFailureThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	type want struct {
		Code  string
		Paths []string
		Text  string
	}
	for name, tc := range map[string]struct {
		body func(b *bundle) []byte
		want want
	}{
		"not JSON": {func(*bundle) []byte { return []byte("hello") }, want{Code: "invalid_request"}},
		"three violations at once": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"job","metadata":{"name":"x"},"spec":{"build":{"commands":"ls","extra":7}}},"force_build":"maybe"}`)
		}, want{Code: "invalid_request", Paths: []string{"/force_build", "/function/spec/build/commands", "/function/spec/build/extra"}}},
		"unknown top-level key": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"job","metadata":{"name":"x"},"spec":{}},"forse_build":true}`)
		}, want{Code: "invalid_request", Text: "forse_build"}},
		"unsupported kind": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"toaster","metadata":{"name":"x"},"spec":{}}}`)
		}, want{Code: "invalid_request", Text: "toaster"}},
		"base is no reference": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "UPPER CASE\nRUN x", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "base_image"}},
		"image is no reference": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "image": "bad image", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "build.image"}},
		"source of MLRun's own": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "source": "store://x/y"}}, nil).Data
		}, want{Code: "invalid_request", Text: "spec.build.source"}},
		"source that is on no worker": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "source": "./code.zip", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "spec.build.source"}},
		"NUL in a command": {func(b *bundle) []byte { return b.request("", b.spec("echo \x00"), nil).Data }, want{Code: "invalid_request"}},
		"base does not exist": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": b.registry + "/nope:1", "commands": []string{"ls"}, "with_mlrun": false}}, nil).Data
		}, want{Code: "base_not_found", Text: "nope"}},
		"2 MiB": {func(b *bundle) []byte {
			return b.request("", b.spec(strings.Repeat("x", 2<<20)), nil).Data
		}, want{Code: "invalid_request", Text: "1 MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, nil)
			b.queue.add(bare("", tc.body(b))).end(t)
			f := b.failed(t)
			got := want{Code: f.Error.Code, Text: tc.want.Text}
			for _, v := range f.Error.Violations {
				if len(tc.want.Paths) > 0 {
					got.Paths = append(got.Paths, v.Path)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("failure (-want +got):\n%s\n%+v", diff, f.Error)
			}
			whole, err := json.Marshal(f.Error)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(whole), tc.want.Text) {
				t.Errorf("error %s does not name %q", whole, tc.want.Text)
			}
			if b.runs.Load() != 0 {
				t.Error("the engine ran")
			}
		})
	}
}
