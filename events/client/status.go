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
)

// Status is what the events so far tell of a request.
type Status struct {
	RequestID string                 `json:"request_id"`
	State     State                  `json:"state"`
	Function  events.Function        `json:"function"`
	BuildID   string                 `json:"build_id,omitempty"`
	Attempt   int                    `json:"attempt,omitempty"`
	Image     string                 `json:"image,omitempty"`
	Requested time.Time              `json:"requested"`
	Updated   time.Time              `json:"updated"`
	Completed *events.BuildCompleted `json:"completed,omitempty"`
	Failed    *events.BuildFailed    `json:"failed,omitempty"`
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
	all := []events.Type{events.TypeBuildRequested, events.TypeBuildStarted, events.TypeBuildCompleted, events.TypeBuildFailed}
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
		s.apply(e, m)
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
// that is stored twice, or late, changes nothing.
func (s *Status) apply(e events.Event, m events.Message) {
	if s.State == StateCompleted || s.State == StateFailed {
		return
	}
	s.Updated = m.Time
	switch data := e.Data.(type) {
	case *events.BuildRequest:
		if s.State == StateQueued {
			s.Function = events.Identify(data.Function)
		}
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
