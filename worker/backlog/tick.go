package backlog

import (
	"maps"
	"time"
)

// Status is what a build's record says of it.
type Status int

// Statuses of a build.
const (
	// Free: nobody runs it and nothing new is known.
	Free Status = iota
	Live
	// Done: it ended with a result, good or bad, that ends requests.
	Done
)

// Record folds a build's record, as the watch showed it or as this worker read or wrote
// it. Older revisions than known change nothing. Took is what a finished build took, 0
// if it is not known.
func (v *View) Record(buildID string, revision uint64, status Status, took time.Duration, now time.Time) {
	if at, ok := v.abandoned[buildID]; ok && revision > at {
		delete(v.abandoned, buildID)
	}
	b := v.builds[buildID]
	if b == nil {
		if status != Live {
			v.pace.add(took)
			return
		}
		b = v.build(buildID)
	}
	if revision <= b.revision {
		return
	}
	was := b.busy()
	b.revision, b.live = revision, status == Live
	delete(v.live, b.id)
	switch status {
	case Live:
		b.renewed = now
		v.live[b.id] = b
	case Done:
		b.done, b.doneAt = revision, now
		v.pace.add(took)
	case Free:
	}
	v.next = time.Time{}
	if v.turned(b, was); status == Done {
		for _, i := range b.items {
			v.placed(i, b)
		}
	}
	if len(b.items) == 0 && !b.busy() {
		delete(v.builds, b.id)
	}
}

// Unfinished tells that the build's record holds no result: entries that seemed to be at
// their end wait for one.
func (v *View) Unfinished(buildID string) {
	b := v.builds[buildID]
	if b == nil || b.done == 0 {
		return
	}
	b.done = 0
	for _, i := range b.items {
		v.placed(i, b)
	}
}

// Stale reports whether the build's record has been at this revision for a whole lease,
// so that its owner lost it.
func (v *View) Stale(buildID string, revision uint64, now time.Time) bool {
	b := v.builds[buildID]
	return b != nil && b.revision == revision && !now.Before(b.renewed.Add(v.policy.Lease))
}

// Tick lets time pass. It returns the entries whose owner gave no sign of life for a
// lease, and when to call again; zero is not before something changes.
func (v *View) Tick(now time.Time) (lost []Entry, next time.Time) {
	if !v.next.IsZero() && now.Before(v.next) {
		return nil, v.next
	}
	at := func(t time.Time) bool {
		if !now.Before(t) {
			return true
		}
		if next.IsZero() || t.Before(next) {
			next = t
		}
		return false
	}
	for _, b := range v.live {
		if at(b.renewed.Add(v.policy.Lease)) {
			v.expire(b)
		}
	}
	for _, i := range v.runs {
		if i.held != holdNone || i.place == placeEnd {
			continue
		}
		sign := i.at
		if r := v.builds[i.BuildID].renewed; r.After(sign) {
			sign = r
		}
		if at(sign.Add(v.policy.Lease)) && (i.later.IsZero() || at(i.later)) {
			lost = append(lost, i.Entry)
		}
	}
	for sequence, i := range v.timed {
		v.tickItem(sequence, i, at)
	}
	v.next = next
	return lost, next
}

// expire takes a lease that was not renewed for none.
func (v *View) expire(b *build) {
	was := b.busy()
	b.live = false
	delete(v.live, b.id)
	v.turned(b, was)
	if len(b.items) == 0 && !b.busy() {
		v.abandoned[b.id] = b.revision
		delete(v.builds, b.id)
	}
}

// Abandoned returns the builds that their owners claimed and lost, and that no entry
// asks for: their ids, with the revisions of their records.
func (v *View) Abandoned() map[string]uint64 { return maps.Clone(v.abandoned) }

func (v *View) tickItem(sequence uint64, i *Item, at func(time.Time) bool) {
	if i.held != holdNone {
		return
	}
	if !i.later.IsZero() && !at(i.later) {
		return
	}
	if i.place != placeEnd {
		if i.NotBefore.IsZero() || at(i.NotBefore) {
			i.later = time.Time{}
			delete(v.timed, sequence)
		}
		return
	}
	since := i.at
	if b := v.builds[i.BuildID]; b.doneAt.After(since) {
		since = b.doneAt
	}
	if retry := !i.later.IsZero(); retry || at(since.Add(v.policy.Lease)) {
		// Again after a lease, should this worker not come to it.
		i.later = latest(since, i.later).Add(v.policy.Lease)
		v.due = append(v.due, sequence)
		at(i.later)
	}
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Due returns an entry that this worker should end, and holds it.
func (v *View) Due(now time.Time) (e Entry, revision uint64, ok bool) {
	for len(v.due) > 0 {
		sequence := v.due[0]
		v.due = v.due[1:]
		if i := v.items[sequence]; i != nil && i.held == holdNone && i.place == placeEnd {
			v.hold(i, holdOther, now)
			return i.Entry, i.Revision, true
		}
	}
	return e, 0, false
}

// SupersededBy returns the newer request that makes the entry needless.
func (v *View) SupersededBy(sequence uint64) (newer Entry, ok bool) {
	i := v.items[sequence]
	if i == nil {
		return newer, false
	}
	n := v.items[v.supersededBy(i)]
	if n == nil {
		return newer, false
	}
	return n.Entry, true
}
