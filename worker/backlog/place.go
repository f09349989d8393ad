package backlog

import (
	"slices"
	"time"
)

func (i *Item) runs() bool { return i.State == Running || i.held == holdRun }

// count adds n to the counts of what runs if the item does.
func (v *View) count(i *Item, b *build, n int) {
	if !i.runs() {
		return
	}
	was := b.busy()
	b.running += n
	v.running += n
	v.projects[i.Project].running += n
	v.turned(b, was)
}

// turned puts the items of a build where they belong after it became busy or free.
func (v *View) turned(b *build, was bool) {
	if b.busy() == was {
		return
	}
	for _, i := range b.items {
		v.placed(i, b)
	}
}

// placed puts the item where it belongs now.
func (v *View) placed(i *Item, b *build) {
	switch {
	case b.done > i.Seen, i.State == Waiting && v.supersededBy(i) != 0:
		v.move(i, b, placeEnd)
	case i.State == Waiting && i.held == holdNone && !b.busy():
		v.move(i, b, placeReady)
	default:
		v.move(i, b, placeNone)
	}
}

// move changes the place of an item.
func (v *View) move(i *Item, b *build, where place) {
	if i.place == where {
		return
	}
	was, old := b.busy(), i.place
	i.place = where
	ready := &v.projects[i.Project].ready[i.class()]
	at, found := slices.BinarySearch(*ready, i.Sequence)
	switch {
	case where == placeReady && !found:
		*ready = slices.Insert(*ready, at, i.Sequence)
	case where != placeReady && found:
		*ready = slices.Delete(*ready, at, at+1)
	}
	if old == placeEnd {
		b.ending--
	}
	if where == placeEnd {
		b.ending++
		v.timed[i.Sequence], v.next = i, time.Time{}
		v.call(i)
	}
	v.turned(b, was)
}

// call lets this worker end the item, if it is the first that should.
func (v *View) call(i *Item) {
	if i.place == placeEnd && i.held == holdNone && i.later.IsZero() && v.mine(i) {
		v.due = append(v.due, i.Sequence)
	}
}

// mine reports whether this worker is the first that should end the item.
func (v *View) mine(i *Item) bool {
	if i.State == Running {
		return i.Owner == v.policy.Self
	}
	return i.Worker == v.policy.Self
}

func (v *View) supersededBy(i *Item) uint64 {
	if newer := v.newest[i.function()]; newer > i.Sequence {
		return newer
	}
	return 0
}

func (v *View) build(id string) *build {
	b := v.builds[id]
	if b == nil {
		b = &build{id: id, items: map[uint64]*Item{}}
		v.builds[id] = b
	}
	return b
}
