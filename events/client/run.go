package client

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"kiln/events"
	"kiln/events/natsbus"
)

// RequestRun publishes that a function is to be run once its image exists, and returns
// once the server has stored it. It is checked, retried and named as by RequestBuild.
func (c *Client) RequestRun(ctx context.Context, r events.RunRequest, opts ...RequestOption) (Ticket, error) {
	return c.send(ctx, events.TypeRunRequested, &r, opts)
}

// CancelRun publishes that a run is not wanted any more, wherever it is, and returns once
// the server has stored it; AwaitRun tells whether it came in time.
func (c *Client) CancelRun(ctx context.Context, cancel events.RunCancel, opts ...RequestOption) error {
	_, err := c.send(ctx, events.TypeRunCancel, &cancel, opts)
	return err
}

// RunResult is the terminal event of a run; exactly one field is set.
type RunResult struct {
	Completed *events.RunCompleted
	Failed    *events.RunFailed
	Canceled  *events.RunCanceled
}

// AwaitRun returns the run's terminal event, whether it is stored already or yet to come.
// It waits until ctx ends and survives reconnects.
func (c *Client) AwaitRun(ctx context.Context, t Ticket) (RunResult, error) {
	var result RunResult
	err := c.WatchRun(ctx, t, func(e events.Event) bool {
		switch data := e.Data.(type) {
		case *events.RunCompleted:
			result.Completed = data
		case *events.RunFailed:
			result.Failed = data
		case *events.RunCanceled:
			result.Canceled = data
		default:
			return true
		}
		return false
	})
	return result, err
}

// WatchRun is Watch of a run.
func (c *Client) WatchRun(ctx context.Context, t Ticket, visit func(events.Event) bool) error {
	return c.watch(ctx, t, emittedOfRuns(), events.RunOf, visit)
}

// RunLogs copies the output of a run to out: of one attempt, or of all if attempt is 0.
// With follow it goes on until the attempt's log ends. It survives reconnects.
func (c *Client) RunLogs(ctx context.Context, runID string, attempt int, follow bool, out io.Writer) error {
	return c.bus.RunLogs().Read(ctx, events.RunKey(runID), attempt, follow, out)
}

// emittedOfRuns are the types of the events that tell how a run fares.
func emittedOfRuns() []events.Type {
	return slices.DeleteFunc(events.RunTypes(), events.Type.Asked)
}

// States that only runs have.
const (
	// StateWaiting is a run that waits for its image.
	StateWaiting State = "waiting"
	StateRunning State = "running"
)

// RunStatus is what the events so far tell of a run. A run whose image is there and that
// has not started is still waiting, or queued where no image had to be built.
type RunStatus struct {
	RunID    string          `json:"run_id"`
	State    State           `json:"state"`
	Function events.Function `json:"function"`
	Name     string          `json:"name,omitempty"`
	Attempt  int             `json:"attempt,omitempty"`
	ImageRef string          `json:"image_ref,omitempty"`
	// RequestID is the build that the run waits or waited for.
	RequestID string               `json:"request_id,omitempty"`
	Requested time.Time            `json:"requested"`
	Updated   time.Time            `json:"updated"`
	Waiting   *events.RunWaiting   `json:"waiting,omitempty"`
	Completed *events.RunCompleted `json:"completed,omitempty"`
	Failed    *events.RunFailed    `json:"failed,omitempty"`
	Canceled  *events.RunCanceled  `json:"canceled,omitempty"`
}

// Runs returns the selected runs, oldest first.
func (c *Client) Runs(ctx context.Context, q Query) ([]RunStatus, error) {
	var order []*RunStatus
	byID := map[string]*RunStatus{}
	requested := map[string]bool{}
	err := c.bus.Scan(ctx, append(emittedOfRuns(), events.TypeRunRequested), natsbus.Start{Time: q.Since}, func(m events.Message) bool {
		// What cannot be decoded still has an id, and a run.failed that tells why.
		e, _ := events.Decode(m)
		id := e.ID
		if e.Type != events.TypeRunRequested {
			id = events.RunOf(e)
		}
		if id == "" { // not of ours
			return true
		}
		s := byID[id]
		if s == nil {
			s = &RunStatus{RunID: id, State: StateQueued, Requested: m.Time}
			byID[id] = s
			order = append(order, s)
		}
		s.apply(e, m)
		requested[id] = requested[id] || e.Type == events.TypeRunRequested
		return true
	})
	if err != nil {
		return nil, err
	}
	var out []RunStatus
	for _, s := range order {
		old := !q.Since.IsZero() && !requested[s.RunID]
		if !old && (q.Project == "" || s.Function.Project == q.Project) {
			out = append(out, *s)
		}
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = slices.Clip(out[len(out)-q.Limit:])
	}
	return out, nil
}

// RunStatus returns the run with the given id. The error matches ErrUnknown when there is
// none.
func (c *Client) RunStatus(ctx context.Context, id string) (RunStatus, error) {
	all, err := c.Runs(ctx, Query{})
	if err != nil {
		return RunStatus{}, err
	}
	for _, s := range slices.Backward(all) {
		if s.RunID == id {
			return s, nil
		}
	}
	return RunStatus{}, fmt.Errorf("run %.200q: %w", id, ErrUnknown)
}

// apply folds one event into the status. The first terminal state is final.
func (s *RunStatus) apply(e events.Event, m events.Message) {
	if s.Completed != nil || s.Failed != nil || s.Canceled != nil {
		return
	}
	s.Updated = m.Time
	switch data := e.Data.(type) {
	case *events.RunRequest:
		if s.State == StateQueued {
			s.Function, s.Name = events.Identify(data.Function), data.Run.Name
			s.Function.Project = cmp.Or(data.Run.Project, s.Function.Project)
		}
	case *events.RunWaiting:
		s.State, s.Waiting, s.RequestID = StateWaiting, data, data.RequestID
		s.identify(data.Function, 0, "")
		return
	case *events.RunStarted:
		s.State = StateRunning
		s.identify(data.Function, data.Attempt, data.ImageRef)
	case *events.RunCompleted:
		s.State, s.Completed = StateCompleted, data
		s.identify(data.Function, data.Attempt, data.ImageRef)
	case *events.RunFailed:
		s.State, s.Failed = StateFailed, data
		s.identify(data.Function, data.Attempt, data.ImageRef)
	case *events.RunCanceled:
		s.State, s.Canceled = StateCanceled, data
		s.identify(data.Function, data.Attempt, data.ImageRef)
	}
	if s.State != StateWaiting {
		s.Waiting = nil
	}
}

func (s *RunStatus) identify(f events.Function, attempt int, image string) {
	if f != (events.Function{}) {
		s.Function = f
	}
	s.Attempt, s.ImageRef = cmp.Or(attempt, s.Attempt), cmp.Or(image, s.ImageRef)
}
