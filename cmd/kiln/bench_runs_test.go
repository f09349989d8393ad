//go:build bench

package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"kiln/builder/rehearsal"
	"kiln/events"
	"kiln/events/client"
	"kiln/events/natsbus"
)

// TestBenchStartOfRuns measures how long after build.completed the process of a run that
// waited for it starts, beside the least that this can cost, a NATS request with its reply
// and a process, and beside somebody who asks for the state every 1 s and every 2 s.
func TestBenchStartOfRuns(t *testing.T) {
	bin, err := filepath.Abs("../../bin/bench")
	if err != nil {
		t.Fatal(err)
	}
	// A program that really starts a process for each run, and builds nothing.
	if out, err := exec.Command("go", "build", "-tags", "bench", "-o", bin+"/", ".", "../kilnd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	rehearse, err := json.Marshal(rehearsal.Config{LeastMS: 20, MostMS: 60, RunCommand: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	k := upWith(t, filepath.Join(bin, "kiln"), t.TempDir(), "127.0.0.1:0", "KILN_REHEARSAL="+string(rehearse), "KILN_TRIGGER_SLOTS=8", "KILN_WORKER_SLOTS=2")
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
	echo, err := nc.Subscribe("bench.echo", func(m *nats.Msg) { _ = m.Respond(m.Data) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = echo.Unsubscribe() }()
	p := &pollers{t: t, nc: nc, intervals: []time.Duration{time.Second, 2 * time.Second}, took: map[time.Duration][]time.Duration{}}
	var starts, least []time.Duration
	for i := range 30 * rounds() {
		starts = append(starts, p.startOfRun(c, functionJSON(t, fmt.Sprintf("run-%d", i), base, fmt.Sprintf("echo %d", i))))
		least = append(least, leastStart(t, nc))
	}
	p.running.Wait()
	printRatio("build.completed to process start / request + fork", starts, least)
	p50, p99 := percentile(starts, 50), percentile(starts, 99)
	for _, row := range []struct {
		what  string
		times []time.Duration
	}{{"build.completed to process start", starts}, {"request + fork", least}} {
		fmt.Printf("bench: %-33s n=%d  p50 %.2fms  p99 %.2fms  max %.2fms\n",
			row.what, len(row.times), ms(percentile(row.times, 50)), ms(percentile(row.times, 99)), ms(slices.Max(row.times)))
	}
	for _, every := range p.intervals {
		polled := p.took[every]
		fmt.Printf("bench: the same for a poller of %-4s p50 %.0fms  p99 %.0fms; Kiln is %.0f and %.0f times sooner\n",
			every, ms(percentile(polled, 50)), ms(percentile(polled, 99)), float64(percentile(polled, 50))/float64(p50), float64(percentile(polled, 99))/float64(p99))
	}
}

// pollers ask in intervals whether a build is completed, and then start a process, as a
// client that polls does.
type pollers struct {
	t         *testing.T
	nc        *nats.Conn
	intervals []time.Duration
	running   sync.WaitGroup
	mu        sync.Mutex
	took      map[time.Duration][]time.Duration
}

// startOfRun requests a run whose image has to be built, and returns the time between
// build.completed, as stored, and the start of the process.
func (p *pollers) startOfRun(c *client.Client, function []byte) time.Duration {
	p.t.Helper()
	bus, err := natsbus.New(p.nc, natsbus.Topology{})
	if err != nil {
		p.t.Fatal(err)
	}
	requested := time.Now()
	ticket, err := c.RequestRun(p.t.Context(), events.RunRequest{Function: function, AutoBuild: new(events.Flag(true))})
	if err != nil {
		p.t.Fatal(err)
	}
	request := fmt.Sprintf("run.%s.%d", events.RunKey(ticket.ID), ticket.Sequence)
	completed := make(chan time.Time, len(p.intervals))
	for _, every := range p.intervals {
		p.running.Go(func() { p.poll(bus, request, requested, every, completed) })
	}
	result, err := c.AwaitRun(p.t.Context(), ticket)
	if err != nil || result.Completed == nil {
		p.t.Fatalf("AwaitRun() = %+v %+v, %v", result, result.Failed, err)
	}
	var at time.Time
	err = bus.Scan(p.t.Context(), []events.Type{events.TypeBuildCompleted}, natsbus.Start{Time: requested.Add(-time.Second)}, func(m events.Message) bool {
		e, err := events.Decode(m)
		if done, ok := e.Data.(*events.BuildCompleted); err == nil && ok && done.RequestID == request {
			at = m.Time
		}
		return at.IsZero()
	})
	if err != nil || at.IsZero() {
		p.t.Fatalf("no build.completed for %s (%v)", request, err)
	}
	for range p.intervals {
		completed <- at
	}
	return result.Completed.Timings.Started.Sub(at)
}

// poll begins at any moment of an interval: builds end at any.
func (p *pollers) poll(bus *natsbus.Bus, request string, since time.Time, every time.Duration, completed <-chan time.Time) {
	wait := rand.N(every)
	for {
		time.Sleep(wait)
		wait = every
		out, err := bus.Published(p.t.Context(), events.TypeBuildCompleted, request+".build.completed", since.Add(-time.Second))
		if err != nil {
			p.t.Errorf("poll: %v", err)
			return
		}
		if !out {
			continue
		}
		cmd := exec.Command("true")
		if err := cmd.Start(); err != nil {
			p.t.Errorf("poll: %v", err)
			return
		}
		started := time.Now()
		_ = cmd.Wait()
		p.mu.Lock()
		p.took[every] = append(p.took[every], started.Sub(<-completed))
		p.mu.Unlock()
		return
	}
}

// leastStart is a request with its reply, and then a process.
func leastStart(t *testing.T, nc *nats.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := nc.Request("bench.echo", make([]byte, 1000), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	_ = cmd.Wait()
	return took
}

func percentile(all []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}
