//go:build bench

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/registry"
	"kiln/builder/sandbox"
	"kiln/events"
	"kiln/events/client"
)

// rounds of each comparison; KILN_BENCH_ROUNDS changes it.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("KILN_BENCH_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 7
}

// TestBenchOrchestration compares `kiln build` with the bare engine on the same
// Dockerfile in the same kind of sandbox, in turn, and prints what the way through
// the queue costs.
func TestBenchOrchestration(t *testing.T) {
	executor := requirements(t)
	k := up(t, t.TempDir())
	for _, base := range []struct {
		name    string
		ballast int64
	}{{"tiny", 0}, {"200mb", 200 << 20}} {
		ref := k.Registry + "/bench-" + base.name + ":1"
		pushBase(t, ref, base.ballast)
		bare := newBare(t, k, executor)
		var through, alone, engine, checks []time.Duration
		for i := range rounds() + 1 {
			command := fmt.Sprintf("echo %d > /round", i)
			a, done := throughKiln(t, k, ref, command)
			b := bare.run(t, ref, command, i)
			c := bare.verify(t, done, i)
			if i == 0 { // warm-up
				continue
			}
			through, alone, checks = append(through, a), append(alone, b), append(checks, c)
			engine = append(engine, time.Duration(done.Timings.BuildMS)*time.Millisecond)
		}
		slices.Sort(checks)
		fmt.Printf("bench: of which reading the digest back and moving the tag, %s base: p50 %s\n", base.name, checks[len(checks)/2].Round(10*time.Microsecond))
		printRatio("kiln build / bare engine, "+base.name+" base", through, alone)
		printRatio("engine inside kiln / bare engine, "+base.name+" base", engine, alone)
	}
}

// throughKiln runs the command line and returns its wall time and what it said.
func throughKiln(t *testing.T, k *kiln, base, command string) (wall time.Duration, done events.BuildCompleted) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "function.json")
	if err := os.WriteFile(file, functionJSON(t, "bench", base, command), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, errs, code := k.run(t.Context(), "build", "-f", file, "--no-cache", "-o", "json")
	wall = time.Since(began)
	if err := json.Unmarshal([]byte(out), &done); err != nil || code != 0 {
		t.Fatalf("kiln build = %d %q %q (%v)", code, out, errs, err)
	}
	return wall, done
}

// verify does once more, with another tag, what Kiln does at the registry after the engine.
func (b bareEngine) verify(t *testing.T, done events.BuildCompleted, i int) time.Duration {
	t.Helper()
	began := time.Now()
	err := b.images.Verify(t.Context(), done.ImageRef)
	if err == nil {
		err = b.images.Tag(t.Context(), done.ImageRef, fmt.Sprintf("%s-%d", done.Image, i))
	}
	if err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// bareEngine is the sandbox engine without queue, ledger and events.
type bareEngine struct {
	registry string
	engine   *sandbox.Engine
	images   *registry.Registry
	builder  *builder.Builder
}

func newBare(t *testing.T, k *kiln, executor string) bareEngine {
	t.Helper()
	engine, err := sandbox.New(t.Context(), sandbox.Config{Executor: executor, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	reg, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: reg}, engine)
	if err != nil {
		t.Fatal(err)
	}
	return bareEngine{registry: k.Registry, engine: engine, images: reg, builder: b}
}

func (b bareEngine) run(t *testing.T, base, command string, i int) time.Duration {
	t.Helper()
	request, err := function.Resolve(function.Config{Registry: b.registry}, function.Input{
		RequestID: "bare", Function: functionJSON(t, "bare", base, command),
	})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := b.builder.Plan(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	plan.Attempt = i + 1
	began := time.Now()
	if _, err := b.engine.Run(t.Context(), plan, io.Discard); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// TestBenchReused compares the answer to a request whose build exists with the
// least that any answer costs: a publish, a fetch and a ledger read.
func TestBenchReused(t *testing.T) {
	k := up(t, t.TempDir())
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	nc, err := nats.Connect(k.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	floor := newFloor(t, nc)
	request := events.BuildRequest{Function: functionJSON(t, "reused", base, "true")}
	answer := func() (time.Duration, events.Outcome) {
		began := time.Now()
		ticket, err := c.RequestBuild(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		result, err := c.Await(t.Context(), ticket)
		if err != nil || result.Completed == nil {
			t.Fatalf("Await() = %+v, %v", result, err)
		}
		return time.Since(began), result.Completed.Outcome
	}
	answer() // builds
	var reused, least []time.Duration
	for i := range 30 * rounds() {
		took, outcome := answer()
		if outcome != events.OutcomeReused {
			t.Fatalf("outcome = %s, want reused", outcome)
		}
		reused, least = append(reused, took), append(least, floor.once(t, i))
	}
	printRatio("reused answer / publish + fetch + KV get", reused, least)
}

// floor is the least that a request and its answer cost on this server.
type floor struct {
	js       jetstream.JetStream
	consumer jetstream.Consumer
	kv       jetstream.KeyValue
}

func newFloor(t *testing.T, nc *nats.Conn) floor {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench"}})
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "bench", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "BENCH"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(ctx, "key", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	return floor{js, consumer, kv}
}

func (f floor) once(t *testing.T, i int) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := f.js.Publish(t.Context(), "bench", make([]byte, 1000), jetstream.WithMsgID(strconv.Itoa(i))); err != nil {
		t.Fatal(err)
	}
	msg, err := f.consumer.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.kv.Get(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// printRatio prints medians, the median of the pairwise ratios and differences.
func printRatio(what string, a, b []time.Duration) {
	ratios := make([]float64, len(a))
	diffs := make([]time.Duration, len(a))
	for i := range a {
		ratios[i], diffs[i] = float64(a[i])/float64(b[i]), a[i]-b[i]
	}
	slices.Sort(ratios)
	fmt.Printf("bench: %-55s n=%d  %8.2fms / %8.2fms  ratio p50 %.3f (min %.3f max %.3f)  difference p50 %.2fms\n",
		what, len(a), ms(median(a)), ms(median(b)), ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1], ms(median(diffs)))
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
