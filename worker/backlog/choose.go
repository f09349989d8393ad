package backlog

import (
	"cmp"
	"time"
)

// near is how many entries in front of a project's line are as good as the first: among
// them a worker takes one that it took in itself, which it has planned already, so that
// workers rarely reach for the same one.
const near = 16

// Choose returns the entry to build next and holds it: nothing else is done with it
// until Release. Ok is false when there is none.
//
// The more urgent class goes first, then the project with fewer running builds, then
// the one whose last start is longer ago, then the older request. A class of a project
// that started nothing for Policy.Ageing counts as the next more urgent one, and so on.
func (v *View) Choose(now time.Time) (e Entry, revision uint64, ok bool) {
	if !v.synced || (v.policy.Total > 0 && v.running >= v.policy.Total) {
		return e, 0, false
	}
	var best candidate
	for _, p := range v.projects {
		if v.policy.PerProject > 0 && p.running >= v.policy.PerProject {
			continue
		}
		for class := range classes {
			if c := v.candidate(p, class, now); c.item != nil && (best.item == nil || c.compare(best) < 0) {
				best = c
			}
		}
	}
	if best.item == nil {
		return e, 0, false
	}
	v.hold(best.item, holdRun, now)
	return best.item.Entry, best.item.Revision, true
}

// candidate is the entry that a class of a project would start.
type candidate struct {
	item  *Item
	class int
	// head is the first in line.
	head    uint64
	running int
	last    time.Time
}

func (c candidate) compare(o candidate) int {
	return cmp.Or(
		cmp.Compare(c.class, o.class), cmp.Compare(c.running, o.running), c.last.Compare(o.last), cmp.Compare(c.head, o.head),
	)
}

func (v *View) candidate(p *project, class int, now time.Time) candidate {
	c := candidate{running: p.running, last: p.last}
	seen := 0
	for _, sequence := range p.ready[class] {
		i := v.items[sequence]
		if i.NotBefore.After(now) || i.later.After(now) || v.builds[i.BuildID].notBefore.After(now) {
			continue
		}
		if c.item == nil {
			c.item, c.head, c.class = i, sequence, v.aged(p, class, i, now)
		}
		if i.Worker == v.policy.Self {
			c.item = i
			break
		}
		if seen++; seen == near {
			break
		}
	}
	return c
}

// aged is the class after ageing. What counts is how long the class of the project
// started nothing: a project with a long line of old requests gets no more than that.
func (v *View) aged(p *project, class int, head *Item, now time.Time) int {
	since := head.Accepted
	if s := p.started[class]; s.After(since) {
		since = s
	}
	if v.policy.Ageing <= 0 {
		return class
	}
	return max(0, class-int(max(0, now.Sub(since))/v.policy.Ageing))
}

// Reserve reports whether an entry could start at once at this worker, nothing being
// before it in line.
func (v *View) Reserve(e Entry) bool {
	if !v.synced || (v.policy.Total > 0 && v.running >= v.policy.Total) {
		return false
	}
	if b := v.builds[e.BuildID]; b != nil && (b.busy() || len(b.items) > 0) {
		return false
	}
	if newer := v.newest[e.function()]; newer > e.Sequence {
		return false
	}
	for _, p := range v.projects {
		for class := range classes {
			if len(p.ready[class]) > 0 {
				return false
			}
		}
	}
	p := v.projects[e.Project]
	return v.policy.PerProject == 0 || p == nil || p.running < v.policy.PerProject
}

// Within reports whether the running entry is within the bounds: only those that run
// since an earlier revision count, so that the order of the stream decides. Ok is false
// while the watch has not reached the entry's revision.
func (v *View) Within(sequence uint64) (within, ok bool) {
	i := v.items[sequence]
	if v.policy.Total <= 0 && v.policy.PerProject <= 0 {
		return true, true
	}
	if i == nil || v.watched < i.Revision {
		return false, i == nil
	}
	total, project := 0, 0
	for _, other := range v.runs {
		if other.Revision >= i.Revision {
			continue
		}
		total++
		if other.Project == i.Project {
			project++
		}
	}
	return (v.policy.Total == 0 || total < v.policy.Total) && (v.policy.PerProject == 0 || project < v.policy.PerProject), true
}

// Hold holds an entry for something else than a build; false if it is gone or held.
func (v *View) Hold(sequence uint64, now time.Time) bool {
	i := v.items[sequence]
	if i == nil || i.held != holdNone {
		return false
	}
	v.hold(i, holdOther, now)
	return true
}

// HoldRun is Hold for an entry that this worker starts without Choose.
func (v *View) HoldRun(sequence uint64, now time.Time) bool {
	i := v.items[sequence]
	if i == nil || i.held != holdNone {
		return false
	}
	v.hold(i, holdRun, now)
	return true
}

func (v *View) hold(i *Item, h hold, now time.Time) {
	b := v.builds[i.BuildID]
	v.count(i, b, -1)
	i.held, i.later = h, time.Time{}
	v.count(i, b, 1)
	if p := v.projects[i.Project]; h == holdRun {
		p.started[i.class()], p.last = now, now
	}
	v.placed(i, b)
}

// Release ends a hold. This worker leaves the entry alone until later, if that is not
// zero.
func (v *View) Release(sequence uint64, later time.Time) {
	i := v.items[sequence]
	if i == nil || i.held == holdNone {
		return
	}
	b := v.builds[i.BuildID]
	v.count(i, b, -1)
	i.held, i.later = holdNone, later
	v.count(i, b, 1)
	if !later.IsZero() || i.place == placeEnd {
		v.timed[sequence] = i
	}
	v.next = time.Time{}
	v.placed(i, b)
	v.call(i)
}

// Heir returns the oldest entry that waits for the build, and holds it to be built.
func (v *View) Heir(buildID string, now time.Time) (e Entry, revision uint64, ok bool) {
	var heir *Item
	b := v.builds[buildID]
	if b == nil {
		return e, 0, false
	}
	for _, i := range b.items {
		if i.State == Waiting && i.held == holdNone && i.place != placeEnd && (heir == nil || i.Sequence < heir.Sequence) {
			heir = i
		}
	}
	if heir == nil {
		return e, 0, false
	}
	v.hold(heir, holdRun, now)
	return heir.Entry, heir.Revision, true
}
