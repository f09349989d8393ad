package client

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"kiln/events"
	"kiln/events/natsbus"
)

// State of a request, as the events so far tell it.
type State string

// States of a request.
const (
	StateQueued    State = "queued"
	StateBuilding  State = "building"
	StateCompleted State = "completed"
	StateFailed    State = "failed"
	StateCanceled  State = "canceled"
)

// Status is what the events so far tell of a request.
type Status struct {
	RequestID string          `json:"request_id"`
	State     State           `json:"state"`
	Function  events.Function `json:"function"`
	BuildID   string          `json:"build_id,omitempty"`
	Attempt   int             `json:"attempt,omitempty"`
	Image     string          `json:"image,omitempty"`
	Requested time.Time       `json:"requested"`
	Updated   time.Time       `json:"updated"`
	// Queued is what the request waits for, set as long as it waits and was told. Its
	// Position is that of now: whenever a build starts, all that wait move up.
	Queued    *events.BuildQueued    `json:"queued,omitempty"`
	Completed *events.BuildCompleted `json:"completed,omitempty"`
	Failed    *events.BuildFailed    `json:"failed,omitempty"`
	Canceled  *events.BuildCanceled  `json:"canceled,omitempty"`

	// startsBefore is how many builds had started when Queued was told.
	startsBefore int
}

// Query selects requests.
type Query struct {
	// Since leaves out requests that were stored before. The zero value takes all
	// that are kept.
	Since time.Time
	// Project selects one project. Defaults to all.
	Project string
	// Limit keeps the newest ones. Defaults to all.
	Limit int
}

// ErrUnknown is returned by Status for an id that the stream does not know (any
// more).
var ErrUnknown = errors.New("no such request or build")

// List returns the selected requests, oldest first.
func (c *Client) List(ctx context.Context, q Query) ([]Status, error) {
	var order []*Status
	byID := map[string]*Status{}
	requested := map[string]bool{}
	starts := 0
	all := append(emitted(), events.TypeBuildRequested)
	err := c.bus.Scan(ctx, all, natsbus.Start{Time: q.Since}, func(m events.Message) bool {
		// What cannot be decoded still has an id, and a build.failed that tells why.
		e, _ := events.Decode(m)
		id := e.ID
		if e.Type != events.TypeBuildRequested {
			id = requestOf(e)
		}
		if id == "" { // not of ours
			return true
		}
		s := byID[id]
		if s == nil {
			s = &Status{RequestID: id, State: StateQueued, Requested: m.Time}
			byID[id] = s
			order = append(order, s)
		}
		if e.Type == events.TypeBuildStarted {
			starts++
		}
		s.apply(e, m, starts)
		requested[id] = requested[id] || e.Type == events.TypeBuildRequested
		return true
	})
	if err != nil {
		return nil, err
	}
	var out []Status
	for _, s := range order {
		old := !q.Since.IsZero() && !requested[s.RequestID]
		if !old && (q.Project == "" || s.Function.Project == q.Project) {
			s.moveUp(starts)
			out = append(out, *s)
		}
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = slices.Clip(out[len(out)-q.Limit:])
	}
	return out, nil
}

// Status returns the request with the given id, or the newest one of the build with
// the given id. The error matches ErrUnknown when there is none.
func (c *Client) Status(ctx context.Context, id string) (Status, error) {
	all, err := c.List(ctx, Query{})
	if err != nil {
		return Status{}, err
	}
	for _, s := range slices.Backward(all) {
		if s.RequestID == id || s.BuildID == id {
			return s, nil
		}
	}
	return Status{}, ErrUnknown
}

// apply folds one event into the status. The first terminal state is final: an event
// that is stored twice, or late, changes nothing. Starts counts the builds that started
// so far.
func (s *Status) apply(e events.Event, m events.Message, starts int) {
	if s.Completed != nil || s.Failed != nil || s.Canceled != nil {
		return
	}
	s.Updated = m.Time
	switch data := e.Data.(type) {
	case *events.BuildRequest:
		if s.State == StateQueued {
			s.Function = events.Identify(data.Function)
		}
	case *events.BuildQueued:
		if s.State == StateQueued {
			s.Queued, s.startsBefore = data, starts
		}
		s.identify(data.Function, data.BuildID, 0, data.Image)
		return
	case *events.BuildStarted:
		s.State = StateBuilding
		s.identify(data.Function, data.BuildID, data.Attempt, data.Image)
	case *events.BuildCompleted:
		s.State, s.Completed = StateCompleted, data
		s.identify(data.Function, data.BuildID, data.Attempt, data.Image)
		s.stored(data.Timings)
	case *events.BuildFailed:
		s.State, s.Failed = StateFailed, data
		s.identify(data.Function, data.BuildID, data.Attempt, data.Image)
		s.stored(data.Timings)
	case *events.BuildCanceled:
		s.State, s.Canceled = StateCanceled, data
		s.identify(data.Function, data.BuildID, 0, data.Image)
		s.stored(data.Timings)
	}
	if s.State != StateQueued {
		s.Queued = nil
	}
}

// moveUp makes the position that of now.
func (s *Status) moveUp(starts int) {
	if s.Queued != nil && s.Queued.Position > 0 {
		s.Queued.Position = max(1, s.Queued.Position-(starts-s.startsBefore))
	}
}

// identify takes over what an event knows: that of a request which failed early may
// know less than the request itself.
func (s *Status) identify(f events.Function, buildID string, attempt int, image string) {
	if f != (events.Function{}) {
		s.Function = f
	}
	s.BuildID, s.Attempt, s.Image = cmp.Or(buildID, s.BuildID), cmp.Or(attempt, s.Attempt), cmp.Or(image, s.Image)
}

// stored takes over when the request was stored, which counts where the request
// itself is not kept any more.
func (s *Status) stored(t events.Timings) {
	if !t.Requested.IsZero() {
		s.Requested = t.Requested
	}
}
