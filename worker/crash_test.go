package worker

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
	"kiln/events"
	"kiln/worker/history"
)

// script is a set of requests that pass every step that a worker takes.
type script struct {
	*bundle
	mu         sync.Mutex
	executions []history.Execution
	ids        []string
	messages   []*memMessage
	members    int
}

// stage makes a script for workers that are started later.
func stage(t *testing.T) *script {
	t.Helper()
	s := &script{}
	s.bundle = setup(t, func(b *bundle) {
		b.idle = true
		b.cfg.Lease, b.cfg.Slots, b.cfg.MaxAttempts = 150*time.Millisecond, 2, 8
		b.limits = builder.Limits{Memory: 1 << 20}
		b.engine = func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
			s.mu.Lock()
			s.executions = append(s.executions, history.Execution{BuildID: plan.BuildID, Attempt: plan.Attempt})
			s.mu.Unlock()
			switch {
			case strings.Contains(plan.Dockerfile, "fails"):
				return builder.Result{}, builder.Errorf(builder.KindCommandFailed, "running", "exit code 7")
			case strings.Contains(plan.Dockerfile, "hungry") && plan.Limits.Memory < 2<<20:
				return builder.Result{}, builder.Errorf(builder.KindOutOfMemory, "running", "killed")
			case strings.Contains(plan.Dockerfile, "breaks") && plan.Attempt == 1:
				return builder.Result{}, builder.Errorf(builder.KindUnavailable, "pushing", "no registry")
			}
			return push(ctx, plan, logs)
		}
	})
	return s
}

func (s *script) publish(id string, m events.Message) {
	s.ids = append(s.ids, id)
	s.messages = append(s.messages, s.queue.add(m))
}

// play publishes the requests.
func (s *script) play() {
	for _, id := range []string{"lead", "shared", "again"} {
		s.publish(id, s.named(id, id, nil, "echo same"))
	}
	s.publish("fails", s.named("fails", "fails", nil, "echo fails"))
	s.publish("fails too", s.named("fails-too", "fails", nil, "echo fails"))
	s.ids[len(s.ids)-1] = "fails-too"
	s.publish("hungry", s.named("hungry", "hungry", nil, "echo hungry"))
	s.publish("breaks", s.named("breaks", "breaks", nil, "echo breaks"))
	s.publish("none", s.request("none", map[string]any{"image": "mlrun/mlrun"}, nil))
	s.publish("unwanted", s.named("unwanted", "unwanted", nil, "echo unwanted"))
	s.messages = append(s.messages, s.cancel(events.BuildCancel{RequestID: "unwanted"}))
	s.publish("old", s.named("old", "tagged", nil, "echo old"))
	s.publish("new", s.named("new", "tagged", map[string]any{"options": map[string]any{"supersede": true}}, "echo new"))
}

// run starts a worker that dies when it has reached the step for the nth time, and
// waits for that or until everything is done.
func (s *script) run(t *testing.T, l *link, step string, nth int) {
	t.Helper()
	s.members++
	cfg := s.cfg
	cfg.Name = fmt.Sprintf("w%d", s.members)
	l.ackWait = 200 * time.Millisecond
	dead := make(chan struct{})
	var mu sync.Mutex
	count := 0
	m := s.join(t, cfg, l, func(w *Worker) {
		w.reach = func(at string) {
			if at != step {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if count++; count == nth {
				l.kill()
				close(dead)
			}
		}
	})
	if !s.ended(dead) {
		m.worker.Interrupt()
		<-m.done
	}
}

// ended waits until every message is answered and the backlog is empty; false if the
// worker died before that.
func (s *script) ended(dead <-chan struct{}) bool {
	for _, m := range s.messages {
		select {
		case <-m.acked:
		case <-dead:
			return false
		}
	}
	for {
		s.backlog.mu.Lock()
		left, more := len(s.backlog.values), s.backlog.more
		s.backlog.mu.Unlock()
		if left == 0 {
			return true
		}
		select {
		case <-more:
		case <-dead:
			return false
		}
	}
}

// verify judges what is left.
func (s *script) verify(t *testing.T) {
	t.Helper()
	endAll(t, s.messages)
	s.terminals(t) // every event keeps to its schema
	dump := func(b *memBucket) map[string][]byte {
		out := map[string][]byte{}
		for _, key := range b.keys() {
			out[key], _, _ = b.Get(context.Background(), key)
		}
		return out
	}
	s.stream.mu.Lock()
	all := slices.Clone(s.stream.stored)
	s.stream.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fault := range history.Check(history.Run{
		Requests: s.ids, Events: all, Ledger: dump(s.ledger.memBucket), Backlog: dump(s.backlog.memBucket),
		Executions: s.executions, MaxExecutions: s.cfg.MaxAttempts,
		Digest: func(ref string) (string, error) {
			r, err := name.ParseReference(ref)
			if err != nil {
				return "", err
			}
			desc, err := remote.Head(r)
			if err != nil {
				return "", err
			}
			return desc.Digest.String(), nil
		},
	}) {
		t.Error(fault)
	}
}

// steps returns every step that a worker reaches while it plays the script.
func steps(t *testing.T) []string {
	t.Helper()
	s := stage(t)
	s.play()
	seen := map[string]bool{}
	var mu sync.Mutex
	m := s.join(t, s.cfg, newLink(1), func(w *Worker) {
		w.reach = func(at string) {
			mu.Lock()
			defer mu.Unlock()
			seen[at] = true
		}
	})
	s.verify(t)
	m.stop()
	<-m.done
	var out []string
	for at := range seen {
		out = append(out, at)
	}
	slices.Sort(out)
	return out
}

var allPairs = flag.Bool("pairs", false, "whether the test of crashes tries every pair of steps; else one pair for each")

// TestACrashAfterAnyStepHarmsNothing kills a worker after each step that it takes, and
// the next one after each step again. Another worker brings everything to its end.
func TestACrashAfterAnyStepHarmsNothing(t *testing.T) {
	t.Parallel()
	all := steps(t)
	if len(all) < 14 {
		t.Fatalf("the script reaches %d steps only: %q", len(all), all)
	}
	for i, first := range all {
		seconds := []string{"", all[(i+5)%len(all)]}
		if *allPairs {
			seconds = append([]string{""}, all...)
		}
		for _, second := range seconds {
			t.Run(first+" then "+second, func(t *testing.T) {
				t.Parallel()
				s := stage(t)
				s.play()
				s.run(t, newLink(1), first, 1)
				if second != "" {
					s.run(t, newLink(2), second, 1)
				}
				s.run(t, newLink(3), "", 0)
				s.verify(t)
			})
		}
	}
}

var chaosSeeds = flag.Uint64("seeds", 10, "how many seeds the test of random faults tries")

// TestRandomFaultsHarmNothing lets calls fail before and after their effect, breaks
// watches and kills workers, as a seed says.
func TestRandomFaultsHarmNothing(t *testing.T) {
	t.Parallel()
	all := steps(t)
	for seed := range *chaosSeeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			dice := rand.New(rand.NewPCG(seed, 99))
			s := stage(t)
			s.cfg.MaxAttempts = 60
			s.play()
			for range 1 + dice.IntN(4) {
				l := newLink(dice.Uint64())
				l.before, l.after, l.slow = dice.IntN(60), dice.IntN(60), dice.IntN(100)
				s.run(t, l, all[dice.IntN(len(all))], 1+dice.IntN(3))
			}
			s.run(t, newLink(3), "", 0)
			s.verify(t)
		})
	}
}
