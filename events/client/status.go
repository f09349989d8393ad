package client

import (
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
	// Since leaves out requests that were stored before. The zero value takes all.
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
	all := []events.Type{events.TypeBuildRequested, events.TypeBuildStarted, events.TypeBuildCompleted, events.TypeBuildFailed}
	err := c.bus.Scan(ctx, all, natsbus.Start{Time: q.Since}, func(m events.Message) bool {
		// What cannot be decoded still has an id, and a build.failed that tells why.
		e, _ := events.Decode(m)
		id := e.ID
		if e.Type != events.TypeBuildRequested {
			id = requestOf(e)
		}
		s := byID[id]
		if s == nil {
			s = &Status{RequestID: id, State: StateQueued, Requested: m.Time}
			byID[id] = s
			order = append(order, s)
		}
		s.apply(e, m)
		return true
	})
	if err != nil {
		return nil, err
	}
	var out []Status
	for _, s := range order {
		if q.Project == "" || s.Function.Project == q.Project {
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

// apply folds one event into the status. A terminal state is final.
func (s *Status) apply(e events.Event, m events.Message) {
	s.Updated = m.Time
	switch data := e.Data.(type) {
	case *events.BuildRequest:
		if s.State == StateQueued {
			s.Function = events.Identify(data.Function)
		}
	case *events.BuildStarted:
		s.Function, s.BuildID, s.Attempt, s.Image = data.Function, data.BuildID, data.Attempt, data.Image
		if s.State == StateQueued {
			s.State = StateBuilding
		}
	case *events.BuildCompleted:
		s.Function, s.BuildID, s.Attempt, s.Image = data.Function, data.BuildID, data.Attempt, data.Image
		s.State, s.Completed, s.Requested = StateCompleted, data, data.Timings.Requested
	case *events.BuildFailed:
		s.Function, s.BuildID, s.Attempt, s.Image = data.Function, data.BuildID, data.Attempt, data.Image
		s.State, s.Failed, s.Requested = StateFailed, data, data.Timings.Requested
	}
}
