package backlog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kiln/events"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const lease = 30 * time.Second

// board is a View with a clock and a bucket's revisions.
type board struct {
	*View
	now      time.Time
	revision uint64
}

func newBoard(p Policy) *board {
	if p.Self == "" {
		p.Self = "w1"
	}
	if p.Lease == 0 {
		p.Lease = lease
	}
	b := &board{View: New(p), now: start}
	b.Begin()
	if err := b.Watch(Change{Synced: true}, start); err != nil {
		panic(err)
	}
	return b
}

// entry returns one that waits; build ids differ unless change sets one.
func entry(sequence uint64, project string, change ...func(*Entry)) Entry {
	e := Entry{
		RequestID: fmt.Sprintf("r%d", sequence), Sequence: sequence, BuildID: fmt.Sprintf("b%d", sequence), Project: project,
		Function: fmt.Sprintf("f%d", sequence), Tag: "latest", Worker: "w1", State: Waiting, Accepted: start,
	}
	for _, c := range change {
		c(&e)
	}
	return e
}

func of(build string) func(*Entry)        { return func(e *Entry) { e.BuildID = build } }
func by(worker string) func(*Entry)       { return func(e *Entry) { e.Worker = worker } }
func with(p events.Priority) func(*Entry) { return func(e *Entry) { e.Priority = p } }
func running(owner string) func(*Entry)   { return func(e *Entry) { e.State, e.Owner = Running, owner } }
func superseding(e *Entry)                { e.Supersede, e.Function = true, "f" }
func named(e *Entry)                      { e.Function = "f" }
func notBefore(t time.Time) func(*Entry)  { return func(e *Entry) { e.NotBefore = t } }
func (b *board) add(entries ...Entry)     { b.put(entries, true) }
func (b *board) write(entries ...Entry)   { b.put(entries, false) }
func (b *board) pick() uint64             { e, _, _ := b.Choose(b.now); return e.Sequence }
func (b *board) next() uint64             { e, _, _ := b.Due(b.now); return e.Sequence }

func (b *board) record(id string, s Status) {
	b.revision++
	b.Record(id, b.revision, s, 0, b.now)
}

func (b *board) put(entries []Entry, watched bool) {
	for _, e := range entries {
		b.revision++
		b.Put(e, b.revision, b.now)
		if watched {
			raw, err := e.Encode()
			if err == nil {
				err = b.Watch(Change{Key: Key(e.Sequence), Value: raw, Revision: b.revision}, b.now)
			}
			if err != nil {
				panic(err)
			}
		}
	}
}

func TestOldChangesChangeNothing(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	e := entry(1, "p")
	raw, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.Put(e, 10, b.now)
	b.Delete(1, 11)
	// The watch is behind: it shows the write after this worker deleted the entry.
	if err := b.Watch(Change{Key: Key(1), Value: raw, Revision: 10}, b.now); err != nil {
		t.Fatal(err)
	}
	if all, _ := b.Len(); all != 0 {
		t.Error("a change from before the deletion brought the entry back")
	}
	if err := b.Watch(Change{Key: Key(1), Deleted: true, Revision: 11}, b.now); err != nil {
		t.Fatal(err)
	}
	if len(b.gone) != 0 {
		t.Errorf("deletions are kept after the watch showed them: %v", b.gone)
	}
}

func TestASecondSnapshotRemovesWhatIsGone(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p"), entry(2, "p"))
	b.Begin()
	if b.pick() != 0 {
		t.Error("an entry was chosen while the snapshot is not read")
	}
	raw, err := entry(2, "p").Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.write(entry(3, "p")) // this worker's own, after the watch began
	for _, c := range []Change{{Key: Key(2), Value: raw, Revision: 2}, {Synced: true}} {
		if err := b.Watch(c, b.now); err != nil {
			t.Fatal(err)
		}
	}
	if got := []bool{b.has(1), b.has(2), b.has(3)}; !slices.Equal(got, []bool{false, true, true}) {
		t.Errorf("entries 1, 2, 3 are there: %v, want only 2 and 3", got)
	}
}

func (b *board) has(sequence uint64) bool { _, _, ok := b.Get(sequence); return ok }

func TestAnEntryOfALaterFormatIsRefused(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	if err := b.Watch(Change{Key: Key(1), Value: []byte(`{"v":2}`), Revision: 1}, b.now); err == nil {
		t.Error("an entry of version 2 was read")
	}
	if b.has(1) {
		t.Error("the entry is in the view")
	}
}

func TestRequestsOfARunningBuildWaitForItsResult(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p", of("x")), entry(2, "p", of("x")), entry(3, "q", of("x"), by("w2")))
	if got := b.pick(); got != 1 {
		t.Fatalf("chose %d, want 1", got)
	}
	if got := b.pick(); got != 0 {
		t.Errorf("chose %d beside the build that it shares", got)
	}
	if o, _ := b.Outlook(2, b.now); o.Position != 0 || o.Behind != "r1" {
		t.Errorf("outlook = %+v, want behind r1", o)
	}
	b.add(entry(1, "p", of("x"), running("w1")))
	b.record("x", Live)
	b.add(entry(4, "p", of("x"), func(e *Entry) { e.Seen = 1_000 }))
	b.record("x", Done)
	if got := b.next(); got != 2 {
		t.Errorf("%d is to be ended first, want 2, which this worker took in", got)
	}
	if got := b.next(); got != 0 {
		t.Errorf("%d is to be ended; 1 is in the hands of its build, 3 another worker's, 4 newer than the result", got)
	}
	b.now = b.now.Add(lease)
	b.Tick(b.now)
	if got := b.next(); got != 3 {
		t.Errorf("%d is ended after a lease, want 3, which its worker left", got)
	}
}

func TestAnOwnerWithoutASignOfLifeLosesItsEntry(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p", of("x"), running("w2")), entry(2, "p", of("x")))
	for range 5 {
		b.now = b.now.Add(lease * 9 / 10)
		b.record("x", Live)
		if lost, next := b.Tick(b.now); len(lost) > 0 || !next.Equal(b.now.Add(lease)) {
			t.Fatalf("lost %v, next tick %s; the lease was renewed at %s", lost, next, b.now)
		}
	}
	last := b.revision
	if b.Stale("x", last, b.now.Add(lease-1)) {
		t.Error("the lease is over too early")
	}
	b.now = b.now.Add(lease)
	lost, _ := b.Tick(b.now)
	if len(lost) != 1 || lost[0].Sequence != 1 || !b.Stale("x", last, b.now) {
		t.Fatalf("lost = %v, want 1", lost)
	}
	b.add(entry(1, "p", of("x")))
	if got := b.pick(); got != 1 {
		t.Errorf("chose %d, want 1, which waits again", got)
	}
}

func TestALeaseHoldsWithoutARunningEntry(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.record("x", Live)
	b.add(entry(1, "p", of("x")))
	if got := b.pick(); got != 0 {
		t.Errorf("chose %d, whose build runs", got)
	}
	b.now = b.now.Add(lease)
	b.Tick(b.now)
	if got := b.pick(); got != 1 {
		t.Errorf("chose %d, want 1 after the lease", got)
	}
}

func TestANewerRequestSupersedesThoseThatWait(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p", named), entry(2, "p", named), entry(3, "p", named, running("w2")), entry(4, "p"))
	b.add(entry(5, "p", superseding), entry(6, "p", named))
	ended := []uint64{b.next(), b.next(), b.next()}
	slices.Sort(ended)
	if !slices.Equal(ended, []uint64{0, 1, 2}) {
		t.Errorf("superseded %v, want 1 and 2", ended)
	}
	if newer, _ := b.SupersededBy(1); newer.Sequence != 5 {
		t.Errorf("1 is superseded by %d, want 5", newer.Sequence)
	}
	if got := []uint64{b.pick(), b.pick(), b.pick(), b.pick()}; !slices.Equal(got, []uint64{4, 5, 6, 0}) {
		t.Errorf("chose %v, want 4, 5, 6", got)
	}
}

func TestReleaseWithALaterTimeWaits(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p", of("x")), entry(2, "p", of("x")))
	b.record("x", Done)
	first := b.next()
	b.Release(first, b.now.Add(time.Second))
	if second := b.next(); second == first || second == 0 {
		t.Errorf("%d is to be ended, want the other one", second)
	}
	_, next := b.Tick(b.now)
	if b.now = b.now.Add(time.Second); !next.Equal(b.now) {
		t.Errorf("next tick at %s, want %s", next, b.now)
	}
	b.Tick(b.now)
	if got := b.next(); got != first {
		t.Errorf("%d is to be ended, want %d again", got, first)
	}
}

// TestCountsAgreeWithEntries folds random changes and compares what is kept at each
// with what follows from the entries.
func TestCountsAgreeWithEntries(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		dice := rand.New(rand.NewPCG(seed, 1))
		b := newBoard(Policy{Ageing: time.Minute})
		for step := range 500 {
			b.now = b.now.Add(time.Duration(dice.IntN(10_000)) * time.Millisecond)
			sequence := uint64(1 + dice.IntN(30))
			build := fmt.Sprintf("b%d", dice.IntN(8))
			switch dice.IntN(9) {
			case 0, 1, 2:
				b.add(entry(sequence, fmt.Sprintf("p%d", dice.IntN(4)), of(build), by(fmt.Sprintf("w%d", dice.IntN(2)+1)), func(e *Entry) {
					e.Function, e.Seen, e.Supersede = fmt.Sprintf("f%d", dice.IntN(5)), uint64(dice.IntN(int(b.revision+1))), dice.IntN(5) == 0
					if dice.IntN(3) == 0 {
						running("w2")(e)
					}
				}))
			case 3:
				b.revision++
				b.Delete(sequence, b.revision)
			case 4:
				b.record(build, Status(dice.IntN(3)))
			case 5:
				b.pick()
			case 6:
				b.next()
			case 7:
				b.Release(sequence, time.Time{})
			case 8:
				b.Tick(b.now)
			}
			b.check(t, fmt.Sprintf("seed %d, step %d", seed, step))
			if t.Failed() {
				return
			}
		}
	}
}

func (b *board) check(t *testing.T, at string) {
	t.Helper()
	total, projects, builds := 0, map[string]int{}, map[string]int{}
	for _, i := range b.items {
		if i.runs() {
			total++
			projects[i.Project]++
			builds[i.BuildID]++
		}
	}
	ready := 0
	for name, p := range b.projects {
		if p.running != projects[name] || p.items == 0 {
			t.Errorf("%s: project %s has %d running of %d, want %d", at, name, p.running, p.items, projects[name])
		}
		for _, line := range p.ready {
			ready += len(line)
			if !slices.IsSorted(line) {
				t.Errorf("%s: line of %s is %v", at, name, line)
			}
		}
	}
	for _, i := range b.items {
		bl := b.builds[i.BuildID]
		if bl.running != builds[i.BuildID] {
			t.Errorf("%s: build %s has %d running, want %d", at, i.BuildID, bl.running, builds[i.BuildID])
		}
		want := i.State == Waiting && i.held == holdNone && !bl.busy() && bl.done <= i.Seen && b.supersededBy(i) == 0
		if got := i.place == placeReady; got != want {
			t.Errorf("%s: %d is ready: %v, want %v", at, i.Sequence, got, want)
		}
		if want {
			ready--
		}
	}
	if ready != 0 || b.running != total {
		t.Errorf("%s: %d too many in line; %d running, want %d", at, ready, b.running, total)
	}
}
