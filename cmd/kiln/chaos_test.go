//go:build chaos

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/builder/rehearsal"
	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

// Settings of a chaos run, from the environment: KILN_CHAOS_SEED (random),
// KILN_CHAOS_DURATION (40s), KILN_CHAOS_REQUESTS (150), KILN_CHAOS_KILLS (5: how many
// kills there have to be at least).
func chaosSetting(t *testing.T, name string, fallback int) int {
	t.Helper()
	text := os.Getenv("KILN_CHAOS_" + name)
	if text == "" {
		return fallback
	}
	if d, err := time.ParseDuration(text); err == nil {
		return int(d.Seconds())
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KILN_CHAOS_%s is %q", name, text)
	}
	return n
}

// lease is that of workers, and the ack wait of their consumer.
const lease = 3 * time.Second

// chaos is one run: what is there to be broken, and what was broken.
type chaos struct {
	t        *testing.T
	rng      *rand.Rand
	dir      string
	servers  *cluster
	registry *moody
	workers  []*process
	client   *client.Client
	js       jetstream.JetStream
	topology natsbus.Topology

	mu     sync.Mutex
	faults map[string]int
	ids    []string
	// short runs do not last for everything.
	short bool
}

func (c *chaos) count(fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[fault]++
}

// TestChaos lets requests through real processes while these are killed, stopped and
// lied to, and checks the whole history afterwards.
func TestChaos(t *testing.T) {
	seed := uint64(chaosSetting(t, "SEED", int(time.Now().UnixNano()%1e6)))
	duration := time.Duration(chaosSetting(t, "DURATION", 40)) * time.Second
	requests, kills := chaosSetting(t, "REQUESTS", 150), chaosSetting(t, "KILLS", 5)
	fmt.Printf("chaos: seed %d (KILN_CHAOS_SEED=%d repeats it), %s, %d requests\n", seed, seed, duration, requests)
	c := newChaos(t, seed)
	c.short = duration < 2*time.Minute

	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { c.publish(ctx, requests, duration) })
	running.Go(func() { c.breakThings(ctx, duration, kills) })
	running.Go(func() { c.upsetRegistry(ctx, duration) })
	tending, stopTending := context.WithCancel(t.Context())
	var tender sync.WaitGroup
	for _, w := range c.workers {
		tender.Go(func() { c.tend(tending, w) })
	}
	running.Wait()
	c.calm()
	c.awaitTerminal(4*time.Minute, requests)
	stopTending()
	tender.Wait()
	for _, w := range c.workers {
		if err := w.stop(time.Minute); err != nil {
			t.Errorf("%s did not end with exit code 0: %v", w.name, err)
		}
	}
	c.check(kills)
}

func newChaos(t *testing.T, seed uint64) *chaos {
	t.Helper()
	executor := requirements(t)
	c := &chaos{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir(), faults: map[string]int{},
		registry: newMoody(t, seed), topology: natsbus.Topology{Replicas: 3, AckWait: lease},
	}
	logs := filepath.Join("..", "..", ".cache", "chaos", strconv.FormatUint(seed, 10))
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755)); err != nil {
		t.Fatal(err)
	}
	c.servers = startServers(t, 3, logs)
	nc := c.servers.connect(t)
	c.js = c.servers.provision(t, nc, c.topology)
	pushBase(t, c.registry.host+"/base:1", 0)
	rehearse, err := json.Marshal(rehearsal.Config{Journal: c.journal(), LeastMS: 20, MostMS: 1500, Fail: 0.03, Break: 0.03, Real: 0.05})
	if err != nil {
		t.Fatal(err)
	}
	bin := compiled(t, "kilnd-chaos", "../kilnd", "chaos")
	for i := range 4 {
		name := fmt.Sprintf("worker-%d", i+1)
		w := &process{name: name, bin: bin, args: []string{"worker", "--http-addr", "off"}, logs: logs, env: []string{
			"HOME=" + c.dir, "KILN_NATS_URL=" + c.servers.url(), "KILN_REGISTRY_URL=" + c.registry.host, "KILN_WORKER_NAME=" + name,
			"KILN_WORKER_SLOTS=4", "KILN_WORKER_LEASE=" + lease.String(), "KILN_WORKER_SOFT_STOP=20s", "KILN_WORKER_MAX_ATTEMPTS=100",
			"KILN_SANDBOX_EXECUTOR=" + executor, "KILN_SANDBOX_STATE_DIR=" + filepath.Join(c.dir, name), "KILN_REHEARSAL=" + string(rehearse),
		}}
		w.start(t)
		t.Cleanup(w.kill)
		c.workers = append(c.workers, w)
	}
	if c.client, err = client.New(nc); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *chaos) journal() string { return filepath.Join(c.dir, "executions") }

// publish requests images, many of them the same, some twice, and cancels some.
func (c *chaos) publish(ctx context.Context, n int, over time.Duration) {
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 2))
	pause := over * 8 / 10 / time.Duration(n)
	for i := range n {
		build := i
		if i > 0 && rng.IntN(10) < 3 {
			build = rng.IntN(i)
		}
		id := fmt.Sprintf("chaos-%d", i)
		// Few names, so that builds compete for tags.
		name := fmt.Sprintf("fn-%d", build%17)
		request := events.BuildRequest{Function: functionJSON(c.t, name, c.registry.host+"/base:1", fmt.Sprintf("echo %d", build))}
		request.Options.Priority = []events.Priority{events.PriorityInteractive, events.PriorityAuto, events.PriorityBulk}[rng.IntN(3)]
		request.Options.Supersede = rng.IntN(50) == 0
		c.send(id, request) //nolint:contextcheck // what was begun is published, also when the time is over
		if rng.IntN(20) == 0 {
			c.send(id, request) //nolint:contextcheck // as above
			c.count("request published twice")
		}
		if rng.IntN(15) == 0 {
			// Mostly one that waits or runs, now and then one that has ended.
			last := min(len(c.ids), 6)
			if rng.IntN(4) == 0 {
				last = len(c.ids)
			}
			c.cancel(c.ids[len(c.ids)-1-rng.IntN(last)]) //nolint:contextcheck // as above
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (c *chaos) send(id string, request events.BuildRequest) {
	// The servers may be without a leader for some seconds: asked again under the same
	// id nothing is lost and nothing doubled.
	within(c.t, 2*time.Minute, "published request "+id, func() error {
		_, err := c.client.RequestBuild(c.t.Context(), request, client.WithID(id))
		return err
	})
	if !slices.Contains(c.ids, id) {
		c.ids = append(c.ids, id)
	}
}

func (c *chaos) cancel(id string) {
	within(c.t, 2*time.Minute, "published cancel of "+id, func() error {
		return c.client.Cancel(c.t.Context(), events.BuildCancel{RequestID: id, Reason: "chaos"})
	})
	c.count("cancel")
}

// breakThings breaks one process after another until ctx ends, each mended after a while.
func (c *chaos) breakThings(ctx context.Context, over time.Duration, kills int) {
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 3))
	// Every kind in each round, in an order of its own.
	kinds := []func(){
		func() { c.killWorker(rng) }, func() { c.killWorker(rng) }, func() { c.killWorker(rng) },
		func() { c.pauseWorker(ctx, rng) }, func() { c.killNode(ctx, rng, false) }, func() { c.killNode(ctx, rng, true) },
	}
	pause := min(over/time.Duration(2*kills+2*len(kinds)), 4*time.Second)
	for ctx.Err() == nil {
		for _, i := range rng.Perm(len(kinds)) {
			kinds[i]()
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause/2 + time.Duration(rng.Int64N(int64(pause)))):
			}
		}
	}
}

// upsetRegistry puts the registry into one mood after another, healthy between them. A
// mood lasts until somebody noticed, within reason.
func (c *chaos) upsetRegistry(ctx context.Context, over time.Duration) {
	moods := []string{moodCuts, moodSlow, moodBusy, moodBroken, moodLying}
	pause := min(over/time.Duration(2*len(moods)+1), 5*time.Second)
	for ctx.Err() == nil {
		for _, mood := range moods {
			c.registry.set(mood)
			lasts(ctx, pause)
			for range 4 {
				if c.registry.noticed(mood) {
					break
				}
				lasts(ctx, pause)
			}
			c.registry.set(moodHealthy)
			lasts(ctx, pause)
		}
	}
}

func lasts(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tend starts a worker again that ended by itself, as whatever runs services does: one
// that finds no server within its patience gives up.
func (c *chaos) tend(ctx context.Context, w *process) {
	for {
		life := w.life()
		select {
		case <-ctx.Done():
			return
		case <-life:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
		if w.life() == life { // nobody else did
			w.start(c.t)
			c.count("worker ended by itself")
		}
	}
}

func (c *chaos) killWorker(rng *rand.Rand) {
	w := c.workers[rng.IntN(len(c.workers))]
	w.kill()
	w.start(c.t)
	c.count("worker killed")
}

func (c *chaos) pauseWorker(ctx context.Context, rng *rand.Rand) {
	w := c.workers[rng.IntN(len(c.workers))]
	w.signal(syscall.SIGSTOP)
	select {
	case <-ctx.Done():
	case <-time.After(2 * lease):
	}
	w.signal(syscall.SIGCONT)
	c.count("worker stopped for two leases")
}

// killNode kills a server, or the one that leads the stream of events, and starts it
// again before the next fault: two of three at once would lose the quorum.
func (c *chaos) killNode(ctx context.Context, rng *rand.Rand, leads bool) {
	node, fault := c.servers.nodes[rng.IntN(len(c.servers.nodes))], "server killed"
	if leads {
		look, cancel := context.WithTimeout(ctx, 3*time.Second)
		leader := c.servers.leader(look, c.js, "BUILD")
		cancel()
		if leader == nil {
			return
		}
		node, fault = leader, "leading server killed"
	}
	node.kill()
	c.count(fault)
	select {
	case <-ctx.Done():
	case <-time.After(time.Second + time.Duration(rng.IntN(1500))*time.Millisecond):
	}
	node.start(c.t)
}

// calm mends everything.
func (c *chaos) calm() {
	c.registry.set(moodHealthy)
	for _, w := range c.workers {
		w.signal(syscall.SIGCONT)
	}
}

// stored reads everything that the stream holds.
func (c *chaos) stored() []events.Event {
	var all []events.Event
	within(c.t, time.Minute, "history", func() error {
		all = nil
		bus, err := natsbus.New(c.js.Conn(), c.topology)
		if err != nil {
			return err
		}
		return bus.Scan(c.t.Context(), events.BuildTypes(), natsbus.Start{}, func(m events.Message) bool {
			e, err := events.Decode(m)
			if err != nil {
				c.t.Errorf("the stream holds what cannot be read: %v: %s", err, m.Data)
			}
			all = append(all, e)
			return true
		})
	})
	return all
}

// awaitTerminal waits until every request has a terminal event.
func (c *chaos) awaitTerminal(patience time.Duration, requests int) {
	deadline := time.Now().Add(patience)
	for {
		ended := map[string]bool{}
		for _, e := range c.stored() {
			if e.Type.Terminal() {
				ended[strings.TrimSuffix(e.ID, "."+string(e.Type))] = true
			}
		}
		if len(ended) >= requests {
			return
		}
		if time.Now().After(deadline) {
			open := slices.DeleteFunc(slices.Clone(c.ids), func(id string) bool { return ended[id] })
			c.t.Errorf("%d of %d requests have no terminal event after %s of calm: %v", len(open), requests, patience, open)
			return
		}
		time.Sleep(time.Second)
	}
}

// executions reads the journal of the rehearsed engine.
func (c *chaos) executions() []rehearsal.Execution {
	raw, err := os.ReadFile(c.journal())
	if err != nil {
		c.t.Fatal(err)
	}
	var all []rehearsal.Execution
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		var e rehearsal.Execution
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			c.t.Errorf("journal: %v: %s", err, lines.Bytes())
		}
		all = append(all, e)
	}
	return all
}

// report prints how often each fault was hit. Where one never was the run proves less
// than it says, and fails; a short one may miss a mood of the registry.
func (c *chaos) report(kills int) {
	maps.Copy(c.faults, c.registry.hits)
	consumer, err := c.js.Consumer(c.t.Context(), "BUILD", "build-workers")
	if err != nil {
		c.t.Fatal(err)
	}
	info := consumer.CachedInfo()
	c.faults["request delivered again"] = int(info.Delivered.Consumer) - len(c.ids)
	moods := []string{moodCuts, moodSlow, moodBusy, moodBroken, moodLying}
	want := append([]string{
		"worker killed", "worker stopped for two leases", "server killed", "leading server killed", "cancel", "request published twice",
		"request delivered again",
	}, moods...)
	killed := c.faults["worker killed"] + c.faults["server killed"] + c.faults["leading server killed"]
	for _, fault := range want {
		fmt.Printf("chaos: %-40s %5d\n", fault, c.faults[fault])
		if missable := c.short && slices.Contains(moods, fault); c.faults[fault] <= 0 && !missable {
			c.t.Errorf("there never was: %s", fault)
		}
	}
	if killed < kills {
		c.t.Errorf("%d kills, want at least %d", killed, kills)
	}
}
