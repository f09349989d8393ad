// Package history judges what a Kiln did by what can be seen of it afterwards: the
// events of its stream, its ledger and backlog, and the registry. It knows no workers,
// so that it judges those of a test in memory and real processes alike.
package history

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"kiln/events"
)

// Run is what is left of a run in which every request should have ended.
type Run struct {
	// Requests are the ids of the requests that were published.
	Requests []string
	// Events are those of the stream, in its order. Requests may be among them.
	Events []events.Event
	// Ledger and Backlog are the records by key.
	Ledger, Backlog map[string][]byte
	// Executions are the runs of engines, if they are known.
	Executions []Execution
	// MaxExecutions bounds the executions of one build; 0 is no bound.
	MaxExecutions int
	// Digest returns the digest that a reference has in the registry.
	Digest func(ref string) (string, error)
}

// Execution is one run of an engine.
type Execution struct {
	BuildID string
	Attempt int
}

// Check returns what must not be, one sentence each, nothing for a good run:
//
//   - every request has exactly one terminal event, and it is the one of the ledger
//   - no event is for a request that was not published, or comes before it
//   - nothing starts for a request that has ended, and what was built for it was started
//   - an attempt of a build starts once, and attempts go up
//   - the image of a completed request can be read, and requests of one attempt of a
//     build have the same
//   - tags are where the newest request moved them: by the ledger, and by the events if
//     the requests are among them
//   - nothing is left in the backlog
func Check(r Run) []string {
	c := &checker{run: r, terminals: map[string]events.Event{}, requested: map[string]int{}, started: map[string]map[int]bool{}, digests: map[string]string{}, canceled: map[string]bool{}}
	c.fold()
	c.requests()
	c.records()
	c.tags()
	c.executions()
	for key := range r.Backlog {
		c.fault("%s is left in the backlog", key)
	}
	slices.Sort(c.faults)
	return c.faults
}

type checker struct {
	run       Run
	faults    []string
	terminals map[string]events.Event
	// requested are the requests by their order in the stream.
	requested map[string]int
	// started are the attempts that started for a request.
	started map[string]map[int]bool
	// digests are those of completed requests, by build and attempt.
	digests map[string]string
	// canceled are builds with a canceled request: what a dead worker claimed for it stays
	// claimed, and harms nobody.
	canceled map[string]bool
}

func (c *checker) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// fold goes through the events in order.
func (c *checker) fold() {
	attempts := map[string]int{}
	for _, e := range c.run.Events {
		id := requestOf(e)
		if id == "" {
			continue
		}
		if !slices.Contains(c.run.Requests, id) {
			c.fault("%s is for request %s, which was not published", e.ID, id)
		}
		if e.Type == events.TypeBuildRequested && c.requested[id] == 0 {
			if c.requested[id] = len(c.requested) + 1; c.started[id] != nil || c.terminals[id].ID != "" {
				c.fault("request %s was published after events for it", id)
			}
		}
		if s, ok := e.Data.(*events.BuildStarted); ok {
			c.begun(s, attempts)
		}
		if !e.Type.Terminal() {
			continue
		}
		if before, ok := c.terminals[id]; ok {
			same := before.ID == e.ID && reflect.DeepEqual(before.Data, e.Data)
			c.fault("request %s ended with %s after %s (the same: %v)", id, e.Type, before.Type, same)
			continue
		}
		c.terminals[id] = e
		switch data := e.Data.(type) {
		case *events.BuildCompleted:
			c.completed(data)
		case *events.BuildCanceled:
			c.canceled[data.BuildID] = true
		}
	}
}

// begun folds a start; attempts are the newest of each build.
func (c *checker) begun(s *events.BuildStarted, attempts map[string]int) {
	if s.Attempt <= attempts[s.BuildID] {
		c.fault("attempt %d of build %.12s started after attempt %d", s.Attempt, s.BuildID, attempts[s.BuildID])
	}
	attempts[s.BuildID] = max(attempts[s.BuildID], s.Attempt)
	if before, ok := c.terminals[s.RequestID]; ok {
		c.fault("attempt %d of build %.12s started for request %s, which had ended with %s", s.Attempt, s.BuildID, s.RequestID, before.Type)
	}
	if c.started[s.RequestID] == nil {
		c.started[s.RequestID] = map[int]bool{}
	}
	c.started[s.RequestID][s.Attempt] = true
}

func requestOf(e events.Event) string {
	switch data := e.Data.(type) {
	case *events.BuildRequest:
		return e.ID
	case *events.BuildQueued:
		return data.RequestID
	case *events.BuildStarted:
		return data.RequestID
	case *events.BuildCompleted:
		return data.RequestID
	case *events.BuildFailed:
		return data.RequestID
	case *events.BuildCanceled:
		return data.RequestID
	case *events.BuildDead:
		return data.RequestID
	}
	return ""
}

func (c *checker) completed(done *events.BuildCompleted) {
	if done.Outcome == events.OutcomeNotNeeded {
		return
	}
	if got, err := c.run.Digest(done.ImageRef); err != nil || got != done.Digest {
		c.fault("image %s of request %s is %q in the registry (%v)", done.ImageRef, done.RequestID, got, err)
	}
	if done.Outcome == events.OutcomeBuilt && !c.started[done.RequestID][done.Attempt] {
		c.fault("request %s was built by attempt %d, which had not started for it", done.RequestID, done.Attempt)
	}
	attempt := fmt.Sprintf("%s attempt %d", done.BuildID, done.Attempt)
	if before, ok := c.digests[attempt]; ok && before != done.Digest {
		c.fault("requests of build %s have two images, %s and %s", attempt, before, done.Digest)
	}
	c.digests[attempt] = done.Digest
}

func (c *checker) requests() {
	for _, id := range c.run.Requests {
		if _, ok := c.terminals[id]; !ok {
			c.fault("request %s has no terminal event", id)
		}
	}
}

// records compares the ledger with the events and the registry. It reads the few fields
// that it needs.
func (c *checker) records() {
	for key, raw := range c.run.Ledger {
		var r struct {
			RequestID string               `json:"request_id"`
			Terminal  *struct{ ID string } `json:"terminal"`
			Ref       string               `json:"ref"`
			Digest    string               `json:"digest"`
			ImageRef  string               `json:"image_ref"`
			Status    string               `json:"status"`
		}
		if err := json.Unmarshal(raw, &r); err != nil {
			c.fault("ledger key %s: %v", key, err)
			continue
		}
		switch kind, name, _ := strings.Cut(key, "."); {
		case kind == "request" && r.Terminal != nil:
			if e, ok := c.terminals[r.RequestID]; ok && e.ID != r.Terminal.ID {
				c.fault("request %s was decided as %s, but %s was published", r.RequestID, r.Terminal.ID, e.ID)
			}
		case kind == "tag":
			if got, err := c.run.Digest(r.Ref); err != nil || got != r.Digest {
				c.fault("tag %s is at %q (%v), but request %s moved it to %s", r.Ref, got, err, r.RequestID, r.Digest)
			}
		case kind == "build" && r.Status == "building" && !c.canceled[name]:
			c.fault("build %s is claimed, but every request has ended", key)
		case kind == "build" && r.Status == "completed":
			if got, err := c.run.Digest(r.ImageRef); err != nil || got != r.Digest {
				c.fault("image %s of %s is %q in the registry (%v)", r.ImageRef, key, got, err)
			}
		}
	}
}

// tags compares the tags with the newest request that was completed for each.
func (c *checker) tags() {
	newest := map[string]*events.BuildCompleted{}
	for id, e := range c.terminals {
		done, ok := e.Data.(*events.BuildCompleted)
		if !ok || c.requested[id] == 0 || done.Outcome == events.OutcomeNotNeeded {
			continue
		}
		if other := newest[done.Image]; other == nil || c.requested[other.RequestID] < c.requested[id] {
			newest[done.Image] = done
		}
	}
	for tag, done := range newest {
		if got, err := c.run.Digest(tag); err != nil || got != done.Digest {
			c.fault("tag %s is at %q (%v), but the newest request %s got %s", tag, got, err, done.RequestID, done.Digest)
		}
	}
}

func (c *checker) executions() {
	seen, count := map[Execution]bool{}, map[string]int{}
	for _, x := range c.run.Executions {
		if seen[x] {
			c.fault("attempt %d of build %.12s ran twice", x.Attempt, x.BuildID)
		}
		seen[x] = true
		count[x.BuildID]++
	}
	for build, n := range count {
		if c.run.MaxExecutions > 0 && n > c.run.MaxExecutions {
			c.fault("build %.12s ran %d times; at most %d are allowed", build, n, c.run.MaxExecutions)
		}
	}
}
