package backlog

import "time"

// pace is how long builds take, a moving average.
type pace struct{ mean time.Duration }

func (p *pace) add(took time.Duration) {
	switch {
	case took <= 0:
	case p.mean == 0:
		p.mean = took
	default:
		p.mean += (took - p.mean) / 8
	}
}

// Outlook is what can be said of an entry that waits.
type Outlook struct {
	// Position is how many requests go first, plus one; 0 when the entry shares a build
	// that runs.
	Position int
	// Behind is the request whose build is shared; empty if there is none yet.
	Behind string
	// Start is when the build may start; zero when nothing is known.
	Start time.Time
}

// Outlook returns where an entry stands: of its own project all older ones of its class
// go first, of every other as many as are before it in its own.
func (v *View) Outlook(sequence uint64, now time.Time) (o Outlook, ok bool) {
	i := v.items[sequence]
	if i == nil {
		return o, false
	}
	for _, other := range v.builds[i.BuildID].items {
		if other.runs() && other != i {
			return Outlook{Behind: other.RequestID}, true
		}
	}
	rank := 0
	for _, s := range v.projects[i.Project].ready[i.class()] {
		if s < sequence {
			rank++
		}
	}
	o.Position = 1 + rank
	for _, p := range v.projects {
		for class := range i.class() {
			o.Position += len(p.ready[class])
		}
		if p != v.projects[i.Project] {
			o.Position += min(len(p.ready[i.class()]), rank)
		}
	}
	if v.pace.mean > 0 && v.running > 0 {
		o.Start = now.Add(v.pace.mean * time.Duration((o.Position+v.running-1)/v.running))
	}
	return o, true
}
