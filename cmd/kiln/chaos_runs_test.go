//go:build chaos

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/builder/rehearsal"
	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
	judge "kiln/worker/history"
)

// runChaos is many runs that wait for few builds while the processes that start them die.
type runChaos struct {
	t        *testing.T
	dir      string
	registry *moody
	servers  *cluster
	js       jetstream.JetStream
	client   *client.Client
	workers  []*process
	ids      []string
	kills    int
}

// TestRunsWhileTriggersAreKilled lets 500 runs (KILN_CHAOS_RUNS) wait for 5 builds while
// processes, and now and then the server, are killed at random, and judges what is left.
func TestRunsWhileTriggersAreKilled(t *testing.T) {
	seed := uint64(chaosSetting(t, "SEED", int(time.Now().UnixNano()%1e6)))
	fmt.Printf("runs: seed %d (KILN_CHAOS_SEED=%d repeats it)\n", seed, seed)
	c := newRunChaos(t, seed)
	began := time.Now()
	c.publish(chaosSetting(t, "RUNS", 500))
	c.breakThings(rand.New(rand.NewPCG(seed, 7)), 4*time.Minute)
	took := time.Since(began)
	within(t, time.Minute, "closed runs", func() error {
		for key := range c.records() {
			if strings.HasPrefix(key, "open.") {
				return fmt.Errorf("%s is open", key)
			}
		}
		return nil
	})
	for _, w := range c.workers {
		if gone(w) {
			continue
		}
		if err := w.stop(time.Minute); err != nil {
			t.Errorf("%s did not end with exit code 0: %v", w.name, err)
		}
	}
	c.judge(took)
}

// gone reports whether the process has ended.
func gone(p *process) bool {
	select {
	case <-p.life():
		return true
	default:
		return false
	}
}

// publish requests runs of five functions.
func (c *runChaos) publish(n int) {
	for i := range n {
		id := fmt.Sprintf("run-%d", i)
		function := functionJSON(c.t, fmt.Sprintf("fn-%d", i%5), c.registry.host+"/base:1", fmt.Sprintf("echo %d", i%5))
		within(c.t, time.Minute, "published run "+id, func() error {
			_, err := c.client.RequestRun(c.t.Context(), events.RunRequest{Function: function, AutoBuild: new(events.Flag(true))}, client.WithID(id))
			return err
		})
		c.ids = append(c.ids, id)
	}
}

// breakThings kills one process after another until every run has ended.
func (c *runChaos) breakThings(rng *rand.Rand, patience time.Duration) {
	deadline := time.Now().Add(patience)
	for c.ended() < len(c.ids) && time.Now().Before(deadline) {
		time.Sleep(time.Duration(200+rng.IntN(600)) * time.Millisecond)
		for _, w := range c.workers {
			if gone(w) { // one that finds no server ends by itself
				w.start(c.t)
			}
		}
		if c.kills >= 40 {
			continue
		}
		w := c.workers[rng.IntN(len(c.workers))]
		w.kill()
		w.start(c.t)
		if c.kills++; c.kills%13 == 0 { // and now and then the server
			c.servers.nodes[0].kill()
			c.servers.nodes[0].start(c.t)
		}
	}
}

func newRunChaos(t *testing.T, seed uint64) *runChaos {
	t.Helper()
	executor := requirements(t)
	c := &runChaos{t: t, dir: t.TempDir(), registry: newMoody(t, seed)}
	logs := filepath.Join("..", "..", ".cache", "chaos", "runs")
	if err := errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755)); err != nil {
		t.Fatal(err)
	}
	c.servers = startServers(t, 1, logs)
	nc := c.servers.connect(t)
	topology := natsbus.Topology{AckWait: lease}
	c.js = c.servers.provision(t, nc, topology)
	pushBase(t, c.registry.host+"/base:1", 0)
	rehearse, err := json.Marshal(rehearsal.Config{
		LeastMS: 4000, MostMS: 8000, RunDir: filepath.Join(c.dir, "runs"), RunJournal: c.journal(), RunLeastMS: 5, RunMostMS: 1500, RunFail: 0.05, RunBreak: 0.03,
	})
	if err != nil {
		t.Fatal(err)
	}
	bin := compiled(t, "kilnd-chaos", "../kilnd", "chaos")
	for i := range 4 {
		label := fmt.Sprintf("worker-%d", i+1)
		w := &process{name: label, bin: bin, args: []string{"worker", "--http-addr", "off"}, logs: logs, env: []string{
			"HOME=" + c.dir, "KILN_NATS_URL=" + c.servers.url(), "KILN_REGISTRY_URL=" + c.registry.host, "KILN_WORKER_NAME=" + label,
			"KILN_WORKER_SLOTS=4", "KILN_WORKER_LEASE=" + lease.String(), "KILN_WORKER_SOFT_STOP=5s", "KILN_WORKER_MAX_ATTEMPTS=100",
			"KILN_TRIGGER_SLOTS=8", "KILN_TRIGGER_PLACE=here", "KILN_TRIGGER_MAX_ATTEMPTS=20",
			"KILN_SANDBOX_EXECUTOR=" + executor, "KILN_SANDBOX_STATE_DIR=" + filepath.Join(c.dir, label), "KILN_REHEARSAL=" + string(rehearse),
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

func (c *runChaos) journal() string { return filepath.Join(c.dir, "starts") }

// stored reads the events of builds and those of runs.
func (c *runChaos) stored() []events.Event {
	bus, err := natsbus.New(c.js.Conn(), natsbus.Topology{})
	if err != nil {
		c.t.Fatal(err)
	}
	var all []events.Event
	for _, types := range [][]events.Type{events.BuildTypes(), events.RunTypes()} {
		err := bus.Scan(c.t.Context(), types, natsbus.Start{}, func(m events.Message) bool {
			e, err := events.Decode(m)
			if err != nil {
				c.t.Errorf("the stream holds what cannot be read: %v: %s", err, m.Data)
			}
			all = append(all, e)
			return true
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return all
}

// ended counts the runs that have a terminal event.
func (c *runChaos) ended() int {
	var by map[string]uint64
	within(c.t, time.Minute, "state of the stream", func() error {
		stream, err := c.js.Stream(c.t.Context(), "RUN")
		if err != nil {
			return err
		}
		state, err := stream.Info(c.t.Context(), jetstream.WithSubjectFilter("run.*"))
		if err == nil {
			by = state.State.Subjects
		}
		return err
	})
	return int(by["run.completed"] + by["run.failed"] + by["run.canceled"])
}

func (c *runChaos) records() map[string][]byte {
	kv, err := c.js.KeyValue(c.t.Context(), "KILN_RUNS")
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := kv.ListKeys(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string][]byte{}
	for key := range keys.Keys() {
		if entry, err := kv.Get(c.t.Context(), key); err == nil {
			out[key] = entry.Value()
		}
	}
	return out
}

// starts reads the journal of the rehearsed runner.
func (c *runChaos) starts() []judge.Start {
	byKey := map[string]string{}
	for _, id := range c.ids {
		byKey[events.RunKey(id)] = id
	}
	raw, err := os.ReadFile(c.journal())
	if err != nil {
		c.t.Fatal(err)
	}
	var all []judge.Start
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		var s rehearsal.Start
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			c.t.Errorf("journal: %v: %s", err, lines.Bytes())
		}
		all = append(all, judge.Start{RunID: byKey[s.RunID], Attempt: s.Attempt})
	}
	return all
}

func (c *runChaos) judge(took time.Duration) {
	all, starts, records := c.stored(), c.starts(), c.records()
	for _, fault := range judge.CheckRuns(judge.Runs{Requests: c.ids, Events: all, Records: records, Starts: starts, Readable: c.readable}) {
		c.t.Error(fault)
	}
	counts := map[events.Type]int{}
	for _, e := range all {
		counts[e.Type]++
	}
	left, _ := filepath.Glob(filepath.Join(c.dir, "runs", "*"))
	left = slices.DeleteFunc(left, func(file string) bool { return strings.Count(filepath.Base(file), ".") > 1 }) // drafts of the dead
	if len(left) > 0 {
		c.t.Errorf("%d processes are left: %v", len(left), left[0])
	}
	if c.kills < 5 {
		c.t.Errorf("%d kills only", c.kills)
	}
	fmt.Printf("runs: %d runs in %s with %d kills: %d starts, %d builds started, %v\n",
		len(c.ids), took.Round(time.Millisecond), c.kills, len(starts), counts[events.TypeBuildStarted], counts)
}

func (c *runChaos) readable(imageRef string) error {
	ref, err := name.ParseReference(imageRef, name.Insecure)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	_, err = remote.Head(ref, remote.WithContext(ctx))
	return err
}
