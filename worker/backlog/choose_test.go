package backlog

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"kiln/events"
)

func TestOrderOfStarts(t *testing.T) {
	t.Parallel()
	old := func(age time.Duration) func(*Entry) { return func(e *Entry) { e.Accepted = start.Add(-age) } }
	for name, tc := range map[string]struct {
		policy  Policy
		entries []Entry
		want    []uint64
	}{
		"older first":         {entries: []Entry{entry(2, "p"), entry(1, "p"), entry(3, "p")}, want: []uint64{1, 2, 3}},
		"more urgent first":   {entries: []Entry{entry(1, "p", with(events.PriorityBulk)), entry(2, "p"), entry(3, "p", with(events.PriorityInteractive))}, want: []uint64{3, 2, 1}},
		"projects in turn":    {entries: []Entry{entry(1, "p"), entry(2, "p"), entry(3, "p"), entry(4, "q"), entry(5, "q")}, want: []uint64{1, 4, 2, 5, 3}},
		"fewer running first": {entries: []Entry{entry(1, "p", running("w2")), entry(2, "p"), entry(3, "q")}, want: []uint64{3, 2}},
		"own ones first":      {entries: []Entry{entry(1, "p", by("w2")), entry(2, "p", by("w2")), entry(3, "p")}, want: []uint64{3, 1, 2}},
		"not far out of order": {
			entries: append(line(1, near, "w2"), entry(90, "p")), want: []uint64{1, 90, 2},
		},
		"bound of all":           {policy: Policy{Total: 2}, entries: []Entry{entry(1, "p"), entry(2, "q"), entry(3, "r")}, want: []uint64{1, 2, 0}},
		"bound of a project":     {policy: Policy{PerProject: 1}, entries: []Entry{entry(1, "p"), entry(2, "p"), entry(3, "q")}, want: []uint64{1, 3, 0}},
		"backing off":            {entries: []Entry{entry(1, "p", notBefore(start.Add(1))), entry(2, "p"), entry(3, "q", of("b1"))}, want: []uint64{2, 0}},
		"waiting long goes up":   {policy: Policy{Ageing: 5 * time.Minute}, entries: []Entry{entry(1, "p", with(events.PriorityBulk), old(11*time.Minute)), entry(2, "q", with(events.PriorityInteractive))}, want: []uint64{1, 2}},
		"waiting short does not": {policy: Policy{Ageing: 5 * time.Minute}, entries: []Entry{entry(1, "p", with(events.PriorityBulk), old(9*time.Minute)), entry(2, "q", with(events.PriorityInteractive))}, want: []uint64{2, 1}},
		"a long line goes up by one entry only": {
			policy:  Policy{Ageing: 5 * time.Minute},
			entries: []Entry{entry(1, "p", old(6*time.Minute)), entry(2, "p", old(6*time.Minute)), entry(3, "q", with(events.PriorityInteractive)), entry(4, "q", with(events.PriorityInteractive))},
			want:    []uint64{1, 3, 4, 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoard(tc.policy)
			b.add(tc.entries...)
			var got []uint64
			for range tc.want {
				got = append(got, b.pick())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("chose %v, want %v", got, tc.want)
			}
		})
	}
}

func line(from, n uint64, worker string) []Entry {
	var out []Entry
	for s := range n {
		out = append(out, entry(from+s, "p", by(worker)))
	}
	return out
}

// TestALongLineDelaysNobodyElse: one project has 10 000 requests and every slot; another
// project's single one starts with the next slot that gets free.
func TestALongLineDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	const slots, build = 8, 2 * time.Minute
	for name, ageing := range map[string]time.Duration{"without ageing": 0, "with ageing": 5 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoard(Policy{Ageing: ageing})
			for s := range uint64(10_000) {
				b.write(entry(s+1, "crowd"))
			}
			var run []uint64
			fill := func() {
				for len(run) < slots {
					run = append(run, b.pick())
				}
			}
			fill()
			single, asked, ends := uint64(0), time.Time{}, 0
			for step := range uint64(200) {
				if single == 0 {
					single, asked = 20_000+step, b.now
					b.add(entry(single, "single", func(e *Entry) { e.Accepted = b.now }))
				}
				// Slots get free one after the other.
				b.now = b.now.Add(build / slots)
				b.revision++
				b.Delete(run[0], b.revision)
				run = run[1:]
				fill()
				if b.has(single) && !slices.Contains(run, single) {
					t.Fatalf("request %d waits since %s, though a slot got free", single, asked)
				}
				if !b.has(single) {
					single, ends = 0, ends+1
				}
			}
			if ends < 20 {
				t.Errorf("the other project ended %d requests in 200 steps", ends)
			}
		})
	}
}

// TestTheRevisionDecidesWhoIsWithinTheBounds: whoever runs since an earlier revision
// counts, and nobody decides before the watch has shown all of those.
func TestTheRevisionDecidesWhoIsWithinTheBounds(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{Total: 2, PerProject: 1})
	b.add(entry(1, "p", running("w2")), entry(2, "q", running("w1")), entry(3, "p", running("w1")), entry(4, "r", running("w1")))
	var got []bool
	for s := range uint64(4) {
		within, ok := b.Within(s + 1)
		if !ok {
			t.Fatalf("%d is not decided", s+1)
		}
		got = append(got, within)
	}
	if want := []bool{true, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("within = %v, want %v", got, want)
	}
	b.write(entry(5, "s", running("w1")))
	if _, ok := b.Within(5); ok {
		t.Error("decided before the watch has shown the entry")
	}
}

func TestOnlyALoneEntryIsReserved(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		policy Policy
		there  []Entry
		want   bool
	}{
		"nothing there":             {want: true},
		"others run":                {there: []Entry{entry(1, "p", running("w2"))}, want: true},
		"its build is there":        {there: []Entry{entry(1, "p", of("x"))}},
		"something waits":           {there: []Entry{entry(1, "q")}},
		"the bound is reached":      {policy: Policy{Total: 1}, there: []Entry{entry(1, "q", running("w2"))}},
		"the project's is reached":  {policy: Policy{PerProject: 1}, there: []Entry{entry(1, "p", running("w2"))}},
		"a newer one supersedes it": {there: []Entry{entry(99, "p", superseding, running("w2"))}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBoard(tc.policy)
			b.add(tc.there...)
			if got := b.Reserve(entry(50, "p", of("x"), named)); got != tc.want {
				t.Errorf("Reserve() = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestOutlookCountsWhoGoesFirst(t *testing.T) {
	t.Parallel()
	b := newBoard(Policy{})
	b.add(entry(1, "p", running("w2")), entry(2, "p", running("w2")))
	b.Record("b1", 1_000, Done, 10*time.Second, b.now)
	b.add(entry(3, "p"), entry(4, "p"), entry(5, "q"), entry(6, "q"), entry(7, "q"), entry(8, "q", with(events.PriorityInteractive)), entry(9, "p", with(events.PriorityBulk)))
	for sequence, want := range map[uint64]int{3: 2, 4: 4, 5: 2, 8: 1, 9: 7} {
		if o, ok := b.Outlook(sequence, b.now); !ok || o.Position != want {
			t.Errorf("position of %d = %d, want %d", sequence, o.Position, want)
		}
	}
	if o, _ := b.Outlook(4, b.now); !o.Start.Equal(b.now.Add(20 * time.Second)) {
		t.Errorf("start = %s, want in 20 s: two builds of 10 s, two at a time", o.Start)
	}
}

func BenchmarkChooseAmongTenThousand(b *testing.B) {
	v := newBoard(Policy{Ageing: time.Minute})
	for s := range uint64(10_000) {
		v.add(entry(s+1, fmt.Sprintf("p%d", s%50)))
	}
	for b.Loop() {
		v.Release(v.pick(), time.Time{})
	}
}
