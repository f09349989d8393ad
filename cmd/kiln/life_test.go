//go:build chaos

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"kiln/builder/rehearsal"
	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

// newQuiet is a chaos in which nothing breaks by itself: one server, four workers.
func newQuiet(t *testing.T, rehearse rehearsal.Config) *chaos {
	t.Helper()
	executor := requirements(t)
	c := &chaos{t: t, dir: t.TempDir(), faults: map[string]int{}, registry: newMoody(t, 1), topology: natsbus.Topology{AckWait: lease}}
	logs := t.TempDir()
	c.servers = startServers(t, 1, logs)
	nc := c.servers.connect(t)
	c.js = c.servers.provision(t, nc, c.topology)
	pushBase(t, c.registry.host+"/base:1", 0)
	rehearse.Journal = c.journal()
	raw, err := json.Marshal(rehearse)
	if err != nil {
		t.Fatal(err)
	}
	bin := compiled(t, "kilnd-chaos", "../kilnd", "chaos")
	for i := range 4 {
		name := fmt.Sprintf("worker-%d", i+1)
		w := &process{name: name, bin: bin, args: []string{"worker", "--http-addr", "off"}, logs: logs, env: []string{
			"HOME=" + c.dir, "KILN_NATS_URL=" + c.servers.url(), "KILN_REGISTRY_URL=" + c.registry.host, "KILN_WORKER_NAME=" + name,
			"KILN_WORKER_SLOTS=4", "KILN_WORKER_LEASE=" + lease.String(), "KILN_WORKER_SOFT_STOP=20s",
			"KILN_SANDBOX_EXECUTOR=" + executor, "KILN_SANDBOX_STATE_DIR=" + filepath.Join(c.dir, name), "KILN_REHEARSAL=" + string(raw),
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

func (c *chaos) request(name, command string) events.BuildRequest {
	return events.BuildRequest{Function: functionJSON(c.t, name, c.registry.host+"/base:1", command)}
}

func TestAHundredRequestsShareOneExecution(t *testing.T) {
	c := newQuiet(t, rehearsal.Config{LeastMS: 1500, MostMS: 1500})
	var asking sync.WaitGroup
	results := make([]client.Result, 100)
	for i := range results {
		asking.Go(func() {
			ticket, err := c.client.RequestBuild(t.Context(), c.request("same", "echo same"))
			if err == nil {
				results[i], err = c.client.Await(t.Context(), ticket)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	digests, built := map[string]int{}, 0
	for _, r := range results {
		if r.Completed == nil {
			t.Fatalf("a request ended with %+v", r)
		}
		digests[r.Completed.Digest]++
		if r.Completed.Outcome == events.OutcomeBuilt {
			built++
		}
	}
	executions := c.executions()
	fmt.Printf("life: 100 identical requests over 4 workers: %d executions, %d digests, %d built, %d reused\n", len(executions)/2, len(digests), built, 100-built)
	if len(digests) != 1 || built != 1 || len(executions) != 2 {
		t.Errorf("%d digests, %d built, journal %+v; want one of each", len(digests), built, executions)
	}
}

// started waits for build.started of an attempt and returns it and when it was stored.
func (c *chaos) startedAt(ctx context.Context, ticket client.Ticket, attempt int) (started events.BuildStarted, at time.Time) {
	err := c.client.Watch(ctx, ticket, func(e events.Event) bool {
		if data, ok := e.Data.(*events.BuildStarted); ok && data.Attempt == attempt {
			started, at = *data, e.Time
			return false
		}
		return true
	})
	if err != nil || at.IsZero() {
		c.t.Fatalf("attempt %d did not start: %v", attempt, err)
	}
	return started, at
}

func (c *chaos) named(worker string) *process {
	for _, w := range c.workers {
		if w.name == worker {
			return w
		}
	}
	c.t.Fatalf("no worker %q", worker)
	return nil
}

func TestAnotherWorkerTakesOverWithinALease(t *testing.T) {
	for fault, breakIt := range map[string]func(w *process){
		"killed":  func(w *process) { w.kill() },
		"stopped": func(w *process) { w.signal(syscall.SIGSTOP) },
	} {
		t.Run(fault, func(t *testing.T) {
			c := newQuiet(t, rehearsal.Config{LeastMS: 4000, MostMS: 4000})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ticket, err := c.client.RequestBuild(ctx, c.request("taken", "echo taken"))
			if err != nil {
				t.Fatal(err)
			}
			first, _ := c.startedAt(ctx, ticket, 1)
			victim := c.named(first.Worker)
			broken := time.Now()
			breakIt(victim)
			_, at := c.startedAt(ctx, ticket, 2)
			took := at.Sub(broken)
			fmt.Printf("life: worker %s: attempt 2 started after %s, the lease is %s\n", fault, took.Round(time.Millisecond), lease)
			if took > lease+time.Second {
				t.Errorf("it took %s, want at most a lease and a second", took)
			}
			if fault == "stopped" {
				if rest := time.Until(broken.Add(2 * lease)); rest > 0 {
					time.Sleep(rest) // the fault itself: stopped for two leases
				}
				victim.signal(syscall.SIGCONT)
			}
			result, err := c.client.Await(ctx, ticket)
			if err != nil || result.Completed == nil || result.Completed.Attempt != 2 {
				t.Fatalf("Await() = %+v, %v; want attempt 2", result, err)
			}
			for _, e := range c.executions() {
				if e.Ended && e.Attempt == 1 && e.Outcome == "ok" {
					t.Errorf("the first attempt went on: %+v", e)
				}
			}
			c.ids = append(c.ids, ticket.ID)
			c.judge()
		})
	}
}

func TestRollingRestartLosesAndRepeatsNothing(t *testing.T) {
	c := newQuiet(t, rehearsal.Config{LeastMS: 50, MostMS: 800})
	const n = 300
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range n {
			c.send(fmt.Sprintf("roll-%d", i), c.request(fmt.Sprintf("fn-%d", i), fmt.Sprintf("echo %d", i)))
			time.Sleep(40 * time.Millisecond) // the load: 25 requests per second
		}
	})
	for _, w := range c.workers {
		time.Sleep(time.Second) // workers go one after another, under load
		if err := w.stop(time.Minute); err != nil {
			t.Errorf("%s did not end with exit code 0: %v", w.name, err)
		}
		w.start(t)
	}
	publishing.Wait()
	c.awaitTerminal(2*time.Minute, n)
	outcomes, done := c.judge(), map[string]int{}
	for _, e := range c.executions() {
		if e.Ended && e.Outcome == "ok" {
			done[e.BuildID]++
		}
	}
	twice := 0
	for _, times := range done {
		if times > 1 {
			twice++
		}
	}
	completed := outcomes[events.TypeBuildCompleted]
	fmt.Printf("life: rolling restart of 4 workers under load: %d of %d requests completed, %d executed twice to the end\n", completed, n, twice)
	if completed != n || twice > 0 {
		t.Errorf("%d of %d requests completed, %d executed twice", completed, n, twice)
	}
}
