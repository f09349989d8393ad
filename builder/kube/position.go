package kube

import (
	"bytes"
	"hash/maphash"
	"maps"
	"time"
)

// position is how far a log was read. The API can start a log at a second only, so the
// lines of the last two seconds are remembered and passed over when they come again.
// Two, because a container's two streams are stamped before they are put in order.
type position struct {
	seed maphash.Seed
	// latest is the second of the newest line; zero: none was read.
	latest time.Time
	// lines counts the lines of a second, by second and hash.
	lines map[int64]map[uint64]int
	// again are the lines that are still to be passed over.
	again map[int64]map[uint64]int
}

func newPosition() *position {
	return &position{seed: maphash.MakeSeed(), lines: make(map[int64]map[uint64]int)}
}

// resume prepares for a stream that starts at the time that it returns; the zero time
// is the beginning.
func (p *position) resume() time.Time {
	p.again = make(map[int64]map[uint64]int, len(p.lines))
	for second, lines := range p.lines {
		p.again[second] = maps.Clone(lines)
	}
	if p.latest.IsZero() {
		return time.Time{}
	}
	return p.latest.Add(-time.Second)
}

// next takes the time stamp off a line, and reports whether the line is new. A line
// without a time stamp is.
func (p *position) next(line []byte) (text []byte, isNew bool) {
	stamp, text, ok := bytes.Cut(line, []byte{' '})
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !ok || err != nil {
		return line, true
	}
	second, sum := at.Unix(), maphash.Bytes(p.seed, line)
	if p.again[second][sum] > 0 {
		p.again[second][sum]--
		return text, false
	}
	if start := at.Truncate(time.Second); start.After(p.latest) {
		p.latest = start
		maps.DeleteFunc(p.lines, func(s int64, _ map[uint64]int) bool { return s < second-1 })
	}
	if p.lines[second] == nil {
		p.lines[second] = make(map[uint64]int)
	}
	p.lines[second][sum]++
	return text, true
}
