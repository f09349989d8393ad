//go:build load

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/builder/rehearsal"
	"kiln/events"
	"kiln/events/natsbus"
)

// loadRequests is how many requests a load run sends; KILN_LOAD_REQUESTS changes it.
func loadRequests(t *testing.T, fallback int) int {
	t.Helper()
	text := os.Getenv("KILN_LOAD_REQUESTS")
	if text == "" {
		return fallback
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("KILN_LOAD_REQUESTS is %q", text)
	}
	return n
}

// load is a server, a registry and workers that build nothing.
type load struct {
	t        *testing.T
	dir      string
	servers  *cluster
	registry *moody
	digest   string
	bin      string
	nc       *nats.Conn
	js       jetstream.JetStream
	logs     string
}

func newLoad(t *testing.T) *load {
	t.Helper()
	executor := requirements(t)
	l := &load{t: t, dir: t.TempDir(), registry: newMoody(t, 1), bin: compiled(t, "kilnd-load", "../kilnd", "load")}
	l.logs = filepath.Join("..", "..", ".cache", "load", t.Name())
	if err := os.MkdirAll(l.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_SANDBOX_EXECUTOR", executor)
	l.servers = startServers(t, 1, l.logs)
	l.nc = l.servers.connect(t)
	l.js = l.servers.provision(t, l.nc, natsbus.Topology{})
	for _, repository := range []string{"base", "load"} {
		pushBase(t, l.registry.host+"/"+repository+":1", 0)
	}
	ref, err := name.ParseReference(l.registry.host+"/load:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	l.digest = desc.Digest.String()
	return l
}

func (l *load) worker(i int) *process {
	rehearse, err := json.Marshal(rehearsal.Config{Digest: l.digest})
	if err != nil {
		l.t.Fatal(err)
	}
	label := fmt.Sprintf("worker-%d", i+1)
	w := &process{name: label, bin: l.bin, args: []string{"--log-level", "warn", "worker", "--http-addr", "off"}, logs: l.logs, env: []string{
		"HOME=" + l.dir, "KILN_NATS_URL=" + l.servers.url(), "KILN_REGISTRY_URL=" + l.registry.host, "KILN_WORKER_NAME=" + label,
		"KILN_WORKER_SLOTS=8", "KILN_SANDBOX_STATE_DIR=" + filepath.Join(l.dir, label), "KILN_REHEARSAL=" + string(rehearse),
	}}
	w.start(l.t)
	l.t.Cleanup(w.kill)
	return w
}

// publish sends n requests as fast as the server takes them, 30 % of them for an image
// that was asked for before.
func (l *load) publish(n int) {
	rng := rand.New(rand.NewPCG(uint64(n), 4))
	js, err := jetstream.New(l.nc, jetstream.WithPublishAsyncMaxPending(256))
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range n {
		build := i
		if i > 0 && rng.IntN(10) < 3 {
			build = rng.IntN(i)
		}
		raw, err := json.Marshal(map[string]any{
			"kind": "job", "metadata": map[string]any{"name": fmt.Sprintf("load-%d", i), "project": fmt.Sprintf("p%d", i%10)},
			"spec": map[string]any{"build": map[string]any{
				"base_image": l.registry.host + "/base:1", "image": fmt.Sprintf("%s/load:t%d", l.registry.host, build),
				"commands": []string{fmt.Sprintf("echo %d of %d", build, n)}, "with_mlrun": false,
			}},
		})
		if err != nil {
			l.t.Fatal(err)
		}
		if _, err := js.PublishAsync("build.requested", raw); err != nil {
			l.t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		l.t.Fatal("the server did not take the requests within a minute")
	}
}

// answers is what the stream tells of terminal events.
type answers struct {
	latencies []time.Duration
	failed    int
	last      time.Time
}

// await reads terminal events, from a sequence on, until there are n.
func (l *load) await(ctx context.Context, n int, start natsbus.Start, seen func(count int)) answers {
	bus, err := natsbus.New(l.nc, natsbus.Topology{})
	if err != nil {
		l.t.Fatal(err)
	}
	var a answers
	types := []events.Type{events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled}
	err = bus.Follow(ctx, types, start, func(m events.Message) bool {
		e, err := events.Decode(m)
		if err != nil {
			l.t.Errorf("read an event: %v", err)
		}
		if done, ok := e.Data.(*events.BuildCompleted); ok {
			a.latencies = append(a.latencies, m.Time.Sub(done.Timings.Requested))
		} else {
			a.failed++
		}
		a.last = m.Time
		if seen != nil {
			seen(len(a.latencies) + a.failed)
		}
		return len(a.latencies)+a.failed < n
	})
	if err != nil {
		l.t.Fatalf("%d of %d requests were answered: %v", len(a.latencies)+a.failed, n, err)
	}
	slices.Sort(a.latencies)
	return a
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// memory is a process' resident memory, in MiB.
func (p *process) memory(t *testing.T) int {
	t.Helper()
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// busy is how much time of a core a process took so far.
func (p *process) busy(t *testing.T) time.Duration {
	t.Helper()
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// User and system time are fields 14 and 15, in hundredths of a second; the name of
	// the program, field 2, may hold anything but ends with the last parenthesis.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestLoad prints how many requests that need no work pass through 1, 2 and 4 workers,
// beside the least that a message costs on the same server.
func TestLoad(t *testing.T) {
	n := loadRequests(t, 10000)
	for _, workers := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			l := newLoad(t)
			least := l.least(n, workers)
			var all []*process
			for i := range workers {
				all = append(all, l.worker(i))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			began := time.Now()
			var publishing sync.WaitGroup
			publishing.Go(func() { l.publish(n) })
			a := l.await(ctx, n, natsbus.Start{}, nil)
			publishing.Wait()
			took := a.last.Sub(began)
			if a.failed > 0 {
				t.Errorf("%d of %d requests failed", a.failed, n)
			}
			most, busy := 0, time.Duration(0)
			for _, w := range all {
				most, busy = max(most, w.memory(t)), busy+w.busy(t)
			}
			each := func(d time.Duration) float64 { return inMS(d) / float64(n) }
			fmt.Printf("load: %d workers: CPU per request: workers %.2f ms, server %.2f ms\n", workers, each(busy), each(l.servers.nodes[0].busy(t)))
			rate := float64(n) / took.Seconds()
			fmt.Printf("load: %d workers: %d requests in %.1fs: %.0f/s (publish+fetch+ack alone: %.0f/s, ratio %.3f)  p50 %s p99 %s  memory: worker %d MiB, server %d MiB\n",
				workers, n, took.Seconds(), rate, least, rate/least, quantile(a.latencies, .5).Round(time.Millisecond),
				quantile(a.latencies, .99).Round(time.Millisecond), most, l.servers.nodes[0].memory(t))
		})
	}
}

// least is how many messages per second are published, fetched one by one by as many
// slots as the workers have, and acknowledged.
func (l *load) least(n, workers int) float64 {
	ctx, cancel := context.WithTimeout(l.t.Context(), 5*time.Minute)
	defer cancel()
	stream, err := l.js.CreateStream(ctx, jetstream.StreamConfig{Name: "LEAST", Subjects: []string{"least"}})
	if err != nil {
		l.t.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "least", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		l.t.Fatal(err)
	}
	began := time.Now()
	var running sync.WaitGroup
	running.Go(func() {
		for range n {
			if _, err := l.js.PublishAsync("least", make([]byte, 400)); err != nil {
				l.t.Error(err)
			}
		}
		<-l.js.PublishAsyncComplete()
	})
	for i := range 8 * workers {
		share := n / (8 * workers)
		if i == 0 {
			share += n % (8 * workers)
		}
		running.Go(func() {
			for range share {
				msg, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
				if err == nil {
					err = msg.DoubleAck(ctx)
				}
				if err != nil {
					l.t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	rate := float64(n) / time.Since(began).Seconds()
	if err := l.js.DeleteStream(ctx, "LEAST"); err != nil {
		l.t.Fatal(err)
	}
	return rate
}

// TestLoadBacklog prints the memory of workers and server while a backlog of 50 000
// requests is worked off, a fifth at a time.
func TestLoadBacklog(t *testing.T) {
	n := 5 * loadRequests(t, 10000)
	l := newLoad(t)
	l.publish(n)
	var all []*process
	for i := range 4 {
		all = append(all, l.worker(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	began := time.Now()
	var figures []int
	a := l.await(ctx, n, natsbus.Start{}, func(count int) {
		if count%(n/5) != 0 {
			return
		}
		most := 0
		for _, w := range all {
			most = max(most, w.memory(t))
		}
		figures = append(figures, most)
		fmt.Printf("load: backlog: %6d of %d answered after %5.1fs: worker %d MiB, server %d MiB\n", count, n, time.Since(began).Seconds(), most, l.servers.nodes[0].memory(t))
	})
	if a.failed > 0 {
		t.Errorf("%d of %d requests failed", a.failed, n)
	}
	if first, last := figures[0], figures[len(figures)-1]; last > 2*first {
		t.Errorf("a worker's memory grew from %d to %d MiB", first, last)
	}
}

func inMS(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
