package natsbus

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestEveryConflictOfTheServerIsOne(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"single stream":     {&jetstream.APIError{Code: 400, ErrorCode: 10071, Description: "wrong last sequence: 3"}, true},
		"replicated stream": {&jetstream.APIError{Code: 400, ErrorCode: 10164, Description: "wrong last sequence"}, true},
		"wrapped":           {fmt.Errorf("put: %w", &jetstream.APIError{Code: 400, ErrorCode: 10164}), true},
		"key exists":        {jetstream.ErrKeyExists, true},
		"wrong revision":    {jetstream.ErrKeyRevisionMismatch, true},
		"other refusal":     {&jetstream.APIError{Code: 503, ErrorCode: 10008}, false},
		"no answer":         {nats.ErrTimeout, false},
		"success":           {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := isConflict(tc.err); got != tc.want {
				t.Errorf("isConflict(%v) = %v, want %v", tc.err, got, tc.want)
			}
		})
	}
}

func TestFaultyTopologyReportsEveryFault(t *testing.T) {
	t.Parallel()
	bad := Topology{Prefix: "a.*", Replicas: 2, MaxAge: -1, AckWait: 1, MaxAckPending: -1, DuplicateWindow: time.Hour}
	err := bad.validate()
	for _, text := range []string{"prefix", "replicas", "max age", "ack wait", "max ack pending", "duplicate window"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("validate() = %v, want it to name %s", err, text)
		}
	}
	if _, err := New(&nats.Conn{}, bad); err == nil {
		t.Error("New takes it")
	}
	for _, prefix := range []string{"", "acme", "Acme-2.team_x"} {
		if err := (Topology{Prefix: prefix}).validate(); err != nil {
			t.Errorf("prefix %q: %v", prefix, err)
		}
	}
	for _, prefix := range []string{"a b", ">", "a.", ".a", "a..b", "$JS", "ä", strings.Repeat("a", 101), "a\n"} {
		if err := (Topology{Prefix: prefix}).validate(); err == nil {
			t.Errorf("prefix %q is taken", prefix)
		}
	}
}

func TestPrefixNamesEverything(t *testing.T) {
	t.Parallel()
	topology := Topology{Prefix: "acme.team-1"}.withDefaults()
	consumers := topology.consumers()
	got := []string{
		topology.buildStream(), topology.logStream(), topology.ledgerConfig().Name, topology.contextConfig().Name, topology.buildConfig().Subjects[0],
		consumers[0].config.FilterSubject, consumers[1].config.FilterSubject, topology.backlogConfig().Name,
		topology.runStream(), topology.runLogStream(), topology.runsConfig().Name, topology.runConfig().Subjects[0], topology.runLogConfig().Subjects[0],
		consumers[2].config.FilterSubject, consumers[4].config.FilterSubjects[0],
	}
	want := []string{
		"ACME_TEAM-1_BUILD", "ACME_TEAM-1_BUILD_LOG", "KV_ACME_TEAM-1_KILN_LEDGER", "OBJ_ACME_TEAM-1_KILN_CONTEXT", "acme.team-1.build.*",
		"acme.team-1.build.requested", "acme.team-1.build.cancel", "KV_ACME_TEAM-1_KILN_BACKLOG",
		"ACME_TEAM-1_RUN", "ACME_TEAM-1_RUN_LOG", "KV_ACME_TEAM-1_KILN_RUNS", "acme.team-1.run.*", "acme.team-1.run.log.*",
		"acme.team-1.run.requested", "acme.team-1.build.completed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// Every change of an operator that would lose or reorder work is refused, each alone.
func TestDriftNamesEachDangerousField(t *testing.T) {
	t.Parallel()
	topology := Topology{}.withDefaults()
	for field, change := range map[string]func(*jetstream.StreamConfig){
		"subjects":                 func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "x") },
		"retention":                func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy },
		"storage":                  func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"replicas":                 func(c *jetstream.StreamConfig) { c.Replicas = 3 },
		"max age":                  func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"duplicate window":         func(c *jetstream.StreamConfig) { c.Duplicates = time.Second },
		"max messages":             func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 },
		"max bytes":                func(c *jetstream.StreamConfig) { c.MaxBytes = 10 },
		"max messages per subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 },
		"discard policy":           func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew },
		"acknowledges messages":    func(c *jetstream.StreamConfig) { c.NoAck = true },
		"sealed":                   func(c *jetstream.StreamConfig) { c.Sealed = true },
		"persist mode":             func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
		"is a mirror":              func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{} },
		"sources":                  func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{}} },
		"transforms subjects":      func(c *jetstream.StreamConfig) { c.SubjectTransform = &jetstream.SubjectTransformConfig{} },
	} {
		have := topology.buildConfig()
		change(&have)
		checkDrift(t, field, streamDrift("stream BUILD", topology.buildConfig(), have))
	}
	for field, change := range map[string]func(*jetstream.ConsumerConfig){
		"filter":             func(c *jetstream.ConsumerConfig) { c.FilterSubject, c.FilterSubjects = "", nil },
		"deliver policy":     func(c *jetstream.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverLastPolicy },
		"ack policy":         func(c *jetstream.ConsumerConfig) { c.AckPolicy = jetstream.AckAllPolicy },
		"ack wait":           func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second },
		"backoff steps":      func(c *jetstream.ConsumerConfig) { c.BackOff = []time.Duration{1} },
		"max deliver":        func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 5 },
		"max ack pending":    func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 },
		"headers only":       func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true },
		"memory storage":     func(c *jetstream.ConsumerConfig) { c.MemoryStorage = true },
		"inactive threshold": func(c *jetstream.ConsumerConfig) { c.InactiveThreshold = time.Hour },
		"pushes to":          func(c *jetstream.ConsumerConfig) { c.DeliverSubject = "x" },
	} {
		for _, want := range topology.consumers() {
			have := want.config
			change(&have)
			checkDrift(t, field, consumerDrift(want.stream, want.config, have))
		}
	}
	for field, change := range map[string]func(*jetstream.StreamConfig){
		"message TTL": func(c *jetstream.StreamConfig) { c.AllowMsgTTL = false },
		"marker TTL":  func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Hour },
	} {
		have := topology.backlogConfig()
		change(&have)
		checkDrift(t, field, streamDrift("bucket KILN_BACKLOG", topology.backlogConfig(), have))
	}
	replicated := Topology{Replicas: 3}.withDefaults().ledgerConfig()
	direct := replicated
	direct.AllowDirect = true
	checkDrift(t, "direct reads", streamDrift("bucket KILN_LEDGER", replicated, direct))
	replicated = Topology{Replicas: 3}.withDefaults().contextConfig()
	direct = replicated
	direct.AllowDirect = true
	checkDrift(t, "direct reads", streamDrift("bucket KILN_CONTEXT", replicated, direct))
	replicated = Topology{Replicas: 3}.withDefaults().buildConfig()
	direct = replicated
	direct.AllowDirect = true
	checkDrift(t, "direct reads", streamDrift("stream BUILD", replicated, direct))
}

func checkDrift(t *testing.T, field string, got []Difference) {
	t.Helper()
	if len(got) != 1 || got[0].Field != field || got[0].Repair == "" || got[0].Want == got[0].Have {
		t.Errorf("%s: differences %+v, want this one alone", field, got)
	}
}

// newTestBus returns a provisioned bus on a server of its own.
func newTestBus(t *testing.T, change func(*server.Options)) *Bus {
	t.Helper()
	opts := &server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	if change != nil {
		change(opts)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	nc, err := Connect(Config{Options: []nats.Option{nats.InProcessServer(s)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	bus, err := New(nc, Topology{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Provision(t.Context(), bus.js, Topology{}); err != nil {
		t.Fatal(err)
	}
	return bus
}

func TestDroppedLogIsToldInItsPlace(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	w := newLogWriter(bus.js, bus.Subjects().Log("b1"), "1")
	w.mu.Lock() // nothing is published until the backlog is full
	line := strings.Repeat("x", logBacklog/4-1) + "\n"
	w.pending.WriteString(strings.Repeat(line, 4))
	w.mu.Unlock()
	// The first ones may meet a full backlog, the last one does not.
	if _, err := w.Write([]byte("lost?\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bus.Logs().Read(t.Context(), "b1", 1, true, &out); err != nil {
		t.Fatal(err)
	}
	if rest := strings.TrimPrefix(out.String(), strings.Repeat(line, 4)); rest != "kiln: 6 bytes of log are missing here: the server did not take them in time\n" {
		t.Errorf("after the backlog there is %.200q", rest)
	}
}

func TestLongLinesAndSmallServersStillGiveTheWholeLog(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, func(o *server.Options) { o.MaxPayload = 4 << 10 })
	want := strings.Repeat("ä€𝄞", 5_000) + "\nshort\n" + strings.Repeat("\xff", 9_000)
	w := bus.Logs().Open("b1", 1)
	if _, err := w.Write([]byte(want)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	pieces := 0
	err := bus.Logs().Read(t.Context(), "b1", 1, true, writeFunc(func(p []byte) (int, error) {
		pieces++
		if !bytes.Contains(p, []byte{0xff}) && !utf8.Valid(p) {
			t.Error("a character is split")
		}
		return got.Write(p)
	}))
	if err != nil || got.String() != want || pieces < 10 {
		t.Errorf("Read() = %d bytes in %d pieces, %v; want %d bytes", got.Len(), pieces, err, len(want))
	}
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

func TestReadingALogOfAStrangeNameIsRefused(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	for _, id := range []string{"", "*", ">", "a.b", "a b", "a\n", strings.Repeat("a", 129)} {
		if err := bus.Logs().Read(t.Context(), id, 0, false, &bytes.Buffer{}); err == nil {
			t.Errorf("Read(%q) succeeds", id)
		}
		w := bus.Logs().Open(id, 1)
		if _, err := w.Write([]byte("x\n")); err != nil {
			t.Error(err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	var out bytes.Buffer
	failing := errors.New("disk full")
	w := bus.Logs().Open("b1", 1)
	_, _ = w.Write([]byte("x\n"))
	_ = w.Close()
	err := bus.Logs().Read(t.Context(), "b1", 0, true, writeFunc(func([]byte) (int, error) { return 0, failing }))
	if !errors.Is(err, failing) || out.Len() != 0 {
		t.Errorf("Read() into a full disk = %v", err)
	}
}

// A count of pending messages may be out of date when they are to be delivered.
func TestScanEndsAlthoughWhatWasPendingIsGone(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	for i := range 3 {
		if _, err := bus.js.Publish(t.Context(), "build.requested", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	r := reader{js: bus.js, stream: "BUILD", subjects: []string{"build.requested"}}
	seen := 0
	err := r.run(t.Context(), func(jetstream.Msg, *jetstream.MsgMetadata) bool {
		seen++
		stream, err := bus.js.Stream(t.Context(), "BUILD")
		if err == nil {
			err = stream.Purge(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
		return true
	})
	if err != nil || seen == 0 {
		t.Errorf("visited %d, %v", seen, err)
	}
}

func TestReadersLeaveNoConsumerBehind(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	for range 10 {
		if out, err := bus.Published(t.Context(), "build.failed", "nobody", time.Now().Add(-time.Hour)); out || err != nil {
			t.Fatalf("Published() = %v, %v", out, err)
		}
	}
	stream, err := bus.js.Stream(t.Context(), "BUILD")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Consumers; n != 3 {
		t.Errorf("the stream has %d consumers, want the workers' only", n)
	}
}

func TestAgedContextsAreStoredAnew(t *testing.T) {
	t.Parallel()
	bus := newTestBus(t, nil)
	store, err := bus.Contexts(t.Context())
	if err != nil || store.maxAge != 7*24*time.Hour {
		t.Fatalf("Contexts() = %+v, %v", store, err)
	}
	const digest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" // of "x"
	stored := func() string {
		t.Helper()
		if err := store.Put(t.Context(), digest, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		info, err := store.objects.GetInfo(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		return info.NUID
	}
	first := stored()
	if again := stored(); again != first {
		t.Error("a fresh one was stored again")
	}
	store.maxAge = time.Nanosecond
	if again := stored(); again == first {
		t.Error("one that is about to expire was not stored again")
	}
}
