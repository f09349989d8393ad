package backlog

import (
	"cmp"
	"slices"
	"time"
)

// Policy says what may run and in which order. Zero bounds are none.
type Policy struct {
	// Self is the worker whose view it is.
	Self string
	// Lease is how long a running entry may show no sign of life.
	Lease time.Duration
	// Ageing is how long a class of a project waits until it goes up by one.
	Ageing time.Duration
	// PerProject and Total bound the builds that run at a time, at all workers.
	PerProject, Total int
}

// View is the backlog as one worker knows it. All times are the caller's own clock, so
// that no clocks of different machines are compared. Not safe for concurrent use.
type View struct {
	policy           Policy
	items            map[uint64]*Item
	builds           map[string]*build
	projects         map[string]*project
	byID, byFunction map[string]map[uint64]*Item
	// newest is the newest superseding entry of each tag of a function.
	newest map[string]uint64
	// gone holds the revisions of deletions that the watch has not reached yet.
	gone map[uint64]uint64
	// runs are the items in state Running; timed are those that something is to happen
	// to when time passes, not before next.
	runs, timed map[uint64]*Item
	next        time.Time
	// due are items for this worker to end.
	due     []uint64
	running int
	watched uint64
	round   int
	synced  bool
	// live are the builds whose records say that they run.
	live map[string]*build
	// abandoned are builds whose lease ended with nobody waiting for them, with the
	// revisions of their records.
	abandoned map[string]uint64
	pace      pace
}

// Item is an entry with what this worker knows of it.
type Item struct {
	Entry
	// Revision of the entry in its bucket.
	Revision uint64
	// at is when the last change was seen.
	at time.Time
	// later is when this worker tries again.
	later time.Time
	held  hold
	place place
	round int
}

// hold says what this worker does with an item at the moment.
type hold int

const (
	holdNone hold = iota
	holdRun
	holdOther
)

// place is where an item is counted.
type place int

const (
	placeNone place = iota
	placeReady
	// placeEnd is for items that can be ended without being built.
	placeEnd
)

// build is what is known of a build with unfinished requests, or one that runs.
type build struct {
	id    string
	items map[uint64]*Item
	// running counts items that run or are about to; ending those in placeEnd.
	running, ending int
	// revision is the newest known of the build's record.
	revision uint64
	// live is true while the record says that the build runs, since renewed.
	live    bool
	renewed time.Time
	// done is the revision of the newest result, seen at doneAt.
	done   uint64
	doneAt time.Time
	// notBefore is when it may be tried again, whoever asks for it.
	notBefore time.Time
}

func (b *build) busy() bool { return b.running > 0 || b.live || b.ending > 0 }

type project struct {
	items   int
	running int
	ready   [classes][]uint64
	started [classes]time.Time
	last    time.Time
}

// New returns an empty view.
func New(p Policy) *View {
	return &View{
		policy: p, items: map[uint64]*Item{}, builds: map[string]*build{}, projects: map[string]*project{},
		byID: map[string]map[uint64]*Item{}, byFunction: map[string]map[uint64]*Item{},
		newest: map[string]uint64{}, gone: map[uint64]uint64{}, runs: map[uint64]*Item{}, timed: map[uint64]*Item{},
		live: map[string]*build{}, abandoned: map[string]uint64{},
	}
}

// Begin tells that a watch begins with its snapshot. What that does not show is gone.
func (v *View) Begin() { v.round, v.synced = v.round+1, false }

// Waiting is how many entries wait, those that share a build included.
func (v *View) Waiting() int { return len(v.items) - len(v.runs) }

// Synced reports whether the snapshot was read.
func (v *View) Synced() bool { return v.synced }

// Watched is the newest revision of the backlog that the watch has shown.
func (v *View) Watched() uint64 { return v.watched }

// Watch folds a change that the watch showed. Changes older than what is known change
// nothing. The error is of an entry that cannot be read; it is left alone.
func (v *View) Watch(c Change, now time.Time) error {
	if c.Synced {
		v.sync()
		return nil
	}
	defer v.pass(c.Revision)
	sequence, ok := Sequence(c.Key)
	if !ok {
		return nil
	}
	if c.Deleted && c.Revision == 0 {
		// Nobody knows when; what this worker wrote since is not meant.
		if i := v.items[sequence]; i != nil && i.Revision <= v.watched {
			v.remove(i)
		}
		return nil
	}
	if c.Deleted {
		v.Delete(sequence, c.Revision)
		return nil
	}
	e, err := Decode(c.Value)
	if err != nil {
		return err
	}
	e.Sequence = sequence
	v.Put(e, c.Revision, now)
	return nil
}

// pass forgets deletions that the watch has reached.
func (v *View) pass(revision uint64) {
	v.watched = max(v.watched, revision)
	for sequence, at := range v.gone {
		if at <= v.watched && v.synced {
			delete(v.gone, sequence)
		}
	}
}

func (v *View) sync() {
	for _, i := range v.items {
		if i.round < v.round {
			v.remove(i)
		}
	}
	v.synced = true
	v.pass(v.watched)
}

// Put folds an entry, of the watch or of this worker's own write.
func (v *View) Put(e Entry, revision uint64, now time.Time) {
	old := v.items[e.Sequence]
	if v.gone[e.Sequence] >= revision || (old != nil && old.Revision >= revision) {
		if old != nil {
			old.round = v.round
		}
		return
	}
	i := &Item{Entry: e, Revision: revision, at: now, round: v.round}
	if old != nil {
		i.held, i.later = old.held, old.later
		v.detach(old)
	}
	v.attach(i, now)
	if old != nil {
		v.prune(old)
	}
}

// Delete folds a deletion, of the watch or of this worker's own.
func (v *View) Delete(sequence, revision uint64) {
	i := v.items[sequence]
	if i != nil && i.Revision >= revision {
		return
	}
	if revision > v.watched {
		v.gone[sequence] = revision
	}
	v.remove(i)
}

func (v *View) remove(i *Item) {
	if i == nil {
		return
	}
	v.detach(i)
	v.prune(i)
}

func (v *View) attach(i *Item, now time.Time) {
	v.items[i.Sequence] = i
	insert(v.byID, i.RequestID, i)
	insert(v.byFunction, i.function(), i)
	b := v.build(i.BuildID)
	b.items[i.Sequence] = i
	p := v.projects[i.Project]
	if p == nil {
		p = &project{}
		v.projects[i.Project] = p
	}
	p.items++
	if i.runs() {
		p.started[i.class()], p.last = now, now
	}
	if i.State == Running {
		v.runs[i.Sequence] = i
	}
	if i.NotBefore.After(b.notBefore) {
		b.notBefore = i.NotBefore
	}
	if !i.NotBefore.IsZero() || !i.later.IsZero() {
		v.timed[i.Sequence] = i
	}
	v.next = time.Time{}
	v.count(i, b, 1)
	v.placed(i, b)
	if i.Supersede {
		v.superseded(i.function())
	}
}

func (v *View) detach(i *Item) {
	delete(v.items, i.Sequence)
	delete(v.timed, i.Sequence)
	delete(v.runs, i.Sequence)
	drop(v.byID, i.RequestID, i)
	drop(v.byFunction, i.function(), i)
	b := v.builds[i.BuildID]
	delete(b.items, i.Sequence)
	v.move(i, b, placeNone)
	v.count(i, b, -1)
	v.projects[i.Project].items--
	if i.Supersede {
		v.superseded(i.function())
	}
}

// prune forgets what nothing refers to any more.
func (v *View) prune(i *Item) {
	if p := v.projects[i.Project]; p != nil && p.items == 0 {
		delete(v.projects, i.Project)
	}
	if b := v.builds[i.BuildID]; b != nil && len(b.items) == 0 && !b.busy() {
		delete(v.builds, i.BuildID)
	}
}

func insert(index map[string]map[uint64]*Item, key string, i *Item) {
	if index[key] == nil {
		index[key] = map[uint64]*Item{}
	}
	index[key][i.Sequence] = i
}

func drop(index map[string]map[uint64]*Item, key string, i *Item) {
	if delete(index[key], i.Sequence); len(index[key]) == 0 {
		delete(index, key)
	}
}

// superseded puts the entries for a tag of a function where they belong after a
// superseding one came or went.
func (v *View) superseded(function string) {
	newest := uint64(0)
	for _, i := range v.byFunction[function] {
		if i.Supersede {
			newest = max(newest, i.Sequence)
		}
	}
	if newest == v.newest[function] {
		return
	}
	if v.newest[function] = newest; newest == 0 {
		delete(v.newest, function)
	}
	for _, i := range v.byFunction[function] {
		v.placed(i, v.builds[i.BuildID])
	}
}

// Len returns how many entries there are and how many of them run.
func (v *View) Len() (all, running int) { return len(v.items), v.running }

// Running returns the entries that run.
func (v *View) Running() []Entry { return sorted(v.runs) }

// Project returns how many entries a project has.
func (v *View) Project(name string) int {
	if p := v.projects[name]; p != nil {
		return p.items
	}
	return 0
}

// Get returns an entry with its revision.
func (v *View) Get(sequence uint64) (e Entry, revision uint64, ok bool) {
	i := v.items[sequence]
	if i == nil {
		return e, 0, false
	}
	return i.Entry, i.Revision, true
}

// Request returns the entries of a request id, oldest first.
func (v *View) Request(id string) []Entry { return sorted(v.byID[id]) }

// Build returns the entries of a build, oldest first.
func (v *View) Build(id string) []Entry {
	if b := v.builds[id]; b != nil {
		return sorted(b.items)
	}
	return nil
}

func sorted(items map[uint64]*Item) []Entry {
	out := make([]Entry, 0, len(items))
	for _, i := range items {
		out = append(out, i.Entry)
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return out
}
