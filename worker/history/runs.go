package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"kiln/events"
)

// Runs is what is left of some runs, all of which should have ended.
type Runs struct {
	// Requests are the ids of the runs that were requested.
	Requests []string
	// Events are those about builds in the order of their stream, and those about runs
	// in the order of theirs.
	Events []events.Event
	// Records are what the store of runs holds, by key.
	Records map[string][]byte
	// Starts are the processes that were started, if that is known.
	Starts []Start
	// Readable returns an error for an image that cannot be read; nil: it is not asked.
	Readable func(imageRef string) error
}

// Start is one start of a process.
type Start struct {
	RunID   string
	Attempt int
}

// CheckRuns returns what must not be, one sentence each, nothing for good runs:
//
//   - every run has exactly one terminal event, and nothing comes after it
//   - no event is for a run that was not requested
//   - an attempt starts once, attempts go up, and what completed was started before
//   - nothing starts before the build that the run waited for is completed, or on an
//     image that cannot be read
//   - no process is started twice for an attempt, and none for a run that never had one
//   - nothing is left to be done for any run
func CheckRuns(r Runs) []string {
	c := &runChecker{runs: r, lives: map[string]*life{}, built: map[string]events.Event{}}
	for _, e := range r.Events {
		if done, ok := e.Data.(*events.BuildCompleted); ok {
			c.built[done.RequestID] = e
		}
	}
	for _, e := range r.Events {
		c.event(e)
	}
	c.ends()
	c.starts()
	for key := range r.Records {
		if strings.HasPrefix(key, "open.") {
			c.fault("%s is left open", key)
		}
	}
	slices.Sort(c.faults)
	return c.faults
}

type runChecker struct {
	runs   Runs
	faults []string
	lives  map[string]*life
	// built are the completed builds by request.
	built map[string]events.Event
}

// life is what the events tell of a run.
type life struct {
	attempt  int
	terminal *events.Event
}

func (c *runChecker) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *runChecker) event(e events.Event) {
	id := events.RunOf(e)
	if id == "" {
		return
	}
	l := c.lives[id]
	if l == nil {
		l = &life{}
		c.lives[id] = l
		if !slices.Contains(c.runs.Requests, id) {
			c.fault("%s is for run %s, which was not requested", e.ID, id)
		}
	}
	if l.terminal != nil {
		c.fault("%s of run %s comes after %s", e.Type, id, l.terminal.Type)
		return
	}
	switch data := e.Data.(type) {
	case *events.RunStarted:
		c.started(l, data)
	case *events.RunCompleted:
		if l.attempt != data.Attempt {
			c.fault("run %s completed as attempt %d, but attempt %d had started last", id, data.Attempt, l.attempt)
		}
	}
	if e.Type.Terminal() {
		l.terminal = &e
	}
}

func (c *runChecker) started(l *life, s *events.RunStarted) {
	if s.Attempt <= l.attempt {
		c.fault("attempt %d of run %s started after attempt %d", s.Attempt, s.RunID, l.attempt)
	}
	l.attempt = max(l.attempt, s.Attempt)
	if c.runs.Readable != nil {
		if err := c.runs.Readable(s.ImageRef); err != nil {
			c.fault("run %s started on %s, which cannot be read: %v", s.RunID, s.ImageRef, err)
		}
	}
	raw, ok := c.runs.Records["run."+events.RunKey(s.RunID)]
	var record struct {
		Build string `json:"build"`
	}
	if !ok || json.Unmarshal(raw, &record) != nil {
		c.fault("run %s has no record", s.RunID)
		return
	}
	if record.Build == "" {
		return
	}
	done, ok := c.built[record.Build]
	if !ok {
		c.fault("run %s started, but its build %s was not completed", s.RunID, record.Build)
	} else if s.Started.Before(done.Time) {
		c.fault("run %s started at %s, before its image at %s", s.RunID, s.Started, done.Time)
	}
}

func (c *runChecker) ends() {
	for _, id := range c.runs.Requests {
		l := c.lives[id]
		if l == nil || l.terminal == nil {
			c.fault("run %s has no terminal event", id)
			continue
		}
		var record struct {
			State string `json:"state"`
			Type  string `json:"terminal_type"`
		}
		if raw, ok := c.runs.Records["run."+events.RunKey(id)]; !ok || json.Unmarshal(raw, &record) != nil || record.State != "ended" {
			c.fault("run %s ended, but its record says %q", id, record.State)
		} else if record.Type != string(l.terminal.Type) {
			c.fault("run %s was decided as %s, but %s was published", id, record.Type, l.terminal.Type)
		}
	}
}

func (c *runChecker) starts() {
	seen := map[Start]bool{}
	for _, s := range c.runs.Starts {
		if seen[s] {
			c.fault("attempt %d of run %s was started twice", s.Attempt, s.RunID)
		}
		seen[s] = true
		if l := c.lives[s.RunID]; l == nil {
			c.fault("a process was started for run %s, of which nothing was told", s.RunID)
		}
	}
}
