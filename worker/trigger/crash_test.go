package trigger

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
	"kiln/worker/history"
)

// play publishes runs that pass every step that a trigger takes.
func play(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.build = failingBuilds
	w.park.play = func(p run.Plan) script {
		if p.Name == "long" {
			return script{forever: true, lines: []string{"on and on"}}
		}
		if p.Name == "breaks once" && p.Attempt == 1 {
			return script{broken: builder.Errorf(builder.KindUnavailable, "pulling", "no registry")}
		}
		s := badRuns(p)
		s.takes = 3 * time.Millisecond
		return s
	}
	for _, id := range []string{"a", "b", "c"} {
		w.publish(request(id, needsBuild, ""))
	}
	w.publish(request("plain", `{"image":"reg/mine:1"}`, ""))
	w.publish(request("none", `{"build":{"commands":["x"]}}`, ""))
	w.publish(request("no-build", `{"build":{"base_image":"b","commands":["fails"],"auto_build":true}}`, ""))
	w.publish(request("fails", needsBuild, `,"run":{"name":"fails"}`))
	w.publish(request("breaks", needsBuild, `,"run":{"name":"breaks once"}`))
	w.publish(request("long", needsBuild, `,"run":{"name":"long"}`))
	w.publish(request("unwanted", needsBuild, ""))
	w.publish(cancelOf("unwanted"))
	return w
}

var played = []string{"a", "b", "c", "plain", "none", "no-build", "fails", "breaks", "long", "unwanted"}

// live lets a trigger live until it dies at the nth time that it reaches the step, or
// until everything is done.
func (w *world) live(name string, l *link, step string, nth int, seen func(string)) {
	w.t.Helper()
	dead := make(chan struct{})
	var mu sync.Mutex
	count := 0
	cfg := quick(name)
	cfg.Lease, cfg.Grace, cfg.Slots, cfg.MaxAttempts = 150*time.Millisecond, 100*time.Millisecond, 3, 60
	m := w.join(cfg, l, func(t *Trigger, _ *Deps) {
		if t == nil {
			return
		}
		t.reach = func(at string) {
			mu.Lock()
			defer mu.Unlock()
			if seen != nil {
				seen(at)
			}
			if at != step {
				return
			}
			if count++; count == nth {
				l.kill()
				close(dead)
			}
		}
	})
	defer m.end()
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	canceled := false
	for time.Now().Before(deadline) {
		if !canceled && len(w.of(events.TypeRunStarted)) > 0 && w.runs.record("long").State == stateRunning {
			canceled = true
			w.publish(cancelOf("long"))
		}
		if w.over() {
			return
		}
		select {
		case <-dead:
			return
		case <-tick.C:
		}
	}
	w.t.Fatalf("not over: open %v, %v", w.runs.keys(openPrefix), w.unfinished())
}

func (w *world) unfinished() []string {
	var out []string
	for _, id := range played {
		if r := w.runs.record(id); r.State != stateEnded {
			out = append(out, fmt.Sprintf("%s: %+v, canceled by %+v", id, r, r.Cancel))
		}
	}
	return out
}

// over reports whether every run has ended and nothing is to be done any more.
func (w *world) over() bool {
	return len(w.unfinished()) == 0 && len(w.runs.keys(openPrefix)) == 0
}

// judge holds what is left against what is promised.
func (w *world) judge() {
	w.t.Helper()
	w.check()
	all := append(w.of(events.BuildTypes()...), w.of(events.RunTypes()...)...)
	w.park.mu.Lock()
	starts := slices.Clone(w.park.starts)
	left := len(w.park.processes)
	w.park.mu.Unlock()
	records := map[string][]byte{}
	for _, key := range w.runs.keys("") {
		records[key], _, _ = w.runs.Get(w.t.Context(), key)
	}
	for _, fault := range history.CheckRuns(history.Runs{Requests: played, Events: all, Records: records, Starts: startsOf(starts)}) {
		w.t.Error(fault)
	}
	if left != 0 {
		w.t.Errorf("%d processes are left", left)
	}
	for id, want := range map[string]events.Type{
		"a": events.TypeRunCompleted, "plain": events.TypeRunCompleted, "none": events.TypeRunFailed, "no-build": events.TypeRunFailed,
		"fails": events.TypeRunFailed, "breaks": events.TypeRunCompleted, "long": events.TypeRunCanceled,
	} {
		if got := w.terminal(id).Type; got != want {
			w.t.Errorf("%s ended with %s, want %s", id, got, want)
		}
	}
}

// startsOf reads the names of processes.
func startsOf(names []string) []history.Start {
	byKey := map[string]string{}
	for _, id := range played {
		byKey[events.RunKey(id)] = id
	}
	var out []history.Start
	for _, n := range names {
		var key string
		var attempt int
		_, _ = fmt.Sscanf(n, "%s %d", &key, &attempt)
		out = append(out, history.Start{RunID: byKey[key], Attempt: attempt})
	}
	return out
}

// steps returns every step that a trigger reaches while it plays.
func steps(t *testing.T) []string {
	t.Helper()
	w := play(t)
	seen := map[string]bool{}
	w.live("t1", newLink(1), "", 0, func(at string) { seen[at] = true })
	w.judge()
	var out []string
	for at := range seen {
		out = append(out, at)
	}
	slices.Sort(out)
	return out
}

var allPairs = flag.Bool("pairs", false, "whether the test of crashes tries every pair of steps; else one pair for each")

// TestACrashAfterAnyStepHarmsNothing kills a trigger after each step that it takes, and
// the next one after each step again. Another one brings everything to its end.
func TestACrashAfterAnyStepHarmsNothing(t *testing.T) {
	t.Parallel()
	all := steps(t)
	if len(all) < 16 {
		t.Fatalf("%d steps only: %q", len(all), all)
	}
	for i, first := range all {
		seconds := []string{"", all[(i+5)%len(all)]}
		if *allPairs {
			seconds = append([]string{""}, all...)
		}
		for _, second := range seconds {
			for _, nth := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s %d then %s", first, nth, second), func(t *testing.T) {
					t.Parallel()
					w := play(t)
					w.live("t1", newLink(1), first, nth, nil)
					if second != "" {
						w.live("t2", newLink(2), second, 1, nil)
					}
					w.live("t3", newLink(3), "", 0, nil)
					w.judge()
				})
			}
		}
	}
}

var chaosSeeds = flag.Uint64("seeds", 20, "how many seeds the test of random faults tries")

// TestRandomFaultsHarmNothing lets calls fail before and after their effect, breaks
// watches and kills triggers, as a seed says.
func TestRandomFaultsHarmNothing(t *testing.T) {
	t.Parallel()
	all := steps(t)
	for seed := range *chaosSeeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			dice := rand.New(rand.NewPCG(seed, 99))
			w := play(t)
			for i := range 1 + dice.IntN(4) {
				l := newLink(dice.Uint64())
				l.before, l.after, l.slow = dice.IntN(60), dice.IntN(60), dice.IntN(100)
				w.live(fmt.Sprintf("f%d", i), l, all[dice.IntN(len(all))], 1+dice.IntN(3), nil)
			}
			w.live("last", newLink(3), "", 0, nil)
			w.judge()
		})
	}
}
