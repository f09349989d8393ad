// Package client is what a Go program imports to request images and runs, and to follow
// them:
//
//	c, err := client.New(nc)
//	ticket, err := c.RequestBuild(ctx, events.BuildRequest{Function: function})
//	result, err := c.Await(ctx, ticket)
//
//	ticket, err = c.RequestRun(ctx, events.RunRequest{Function: function, AutoBuild: new(events.Flag(true))})
//	run, err := c.AwaitRun(ctx, ticket)
//
// What it says of requests is read from the stream of events, so that it agrees
// with what every other subscriber sees.
package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"

	"kiln/events"
	"kiln/events/natsbus"
)

// Client requests builds and follows them. Safe for concurrent use.
type Client struct {
	bus    *natsbus.Bus
	source string
}

// Option changes a Client.
type Option func(*options)

type options struct {
	prefix, source string
}

// WithPrefix sets the subject prefix that the workers use. Defaults to none.
func WithPrefix(prefix string) Option { return func(o *options) { o.prefix = prefix } }

// WithSource sets the CloudEvents source of requests, a URI reference that names
// the program. Defaults to "/kiln/client".
func WithSource(source string) Option { return func(o *options) { o.source = source } }

// New returns a Client on an open connection, which it does not close.
func New(nc *nats.Conn, opts ...Option) (*Client, error) {
	o := options{source: "/kiln/client"}
	for _, opt := range opts {
		opt(&o)
	}
	bus, err := natsbus.New(nc, natsbus.Topology{Prefix: o.prefix})
	if err != nil {
		return nil, err
	}
	return &Client{bus: bus, source: o.source}, nil
}

// Ticket names a request that was accepted into the stream. One that was kept in
// text form is as good: Ticket{ID: id} finds the request's events by reading all
// that are kept.
type Ticket struct {
	// ID is the request id.
	ID string
	// Sequence is the request's position in the stream; 0 is unknown.
	Sequence uint64
	// Since is a time before the request, to read from where Sequence is unknown.
	Since time.Time
}

// RequestOption changes one request or cancel.
type RequestOption func(*events.Event)

// WithID sets the request id: 1 to 200 printable ASCII characters. Publishing the
// same request under the same id again is harmless. Defaults to a random id.
func WithID(id string) RequestOption { return func(e *events.Event) { e.ID = id } }

// requestTimeout bounds RequestBuild and Cancel where the caller's context does not.
const requestTimeout = 30 * time.Second

// RequestBuild publishes a request and returns once the server has stored it. Trace
// context in ctx travels with it. The request is checked before it is sent: the
// error of an invalid one is an *events.DecodeError, and of one that is too large
// for the server it matches natsbus.ErrTooLarge. A transient fault is retried until
// ctx ends, at most 30 s; a request that was stored although the answer was lost is
// stored once. After an error it is unknown whether the request was stored, unless
// it was refused: call again WithID.
func (c *Client) RequestBuild(ctx context.Context, r events.BuildRequest, opts ...RequestOption) (Ticket, error) {
	return c.send(ctx, events.TypeBuildRequested, &r, opts)
}

// Cancel publishes that a request is not wanted any more, or all that wait for a build,
// and returns once the server has stored it; Await tells whether it came in time: the
// request then ends with build.canceled. A request that is published later is not
// touched. It is checked and retried as by RequestBuild; WithID sets the id of the cancel,
// under which it is stored once.
func (c *Client) Cancel(ctx context.Context, cancel events.BuildCancel, opts ...RequestOption) error {
	_, err := c.send(ctx, events.TypeBuildCancel, &cancel, opts)
	return err
}

// send publishes an event that somebody asks for, if it is valid.
func (c *Client) send(ctx context.Context, typ events.Type, data any, opts []RequestOption) (Ticket, error) {
	e := events.Event{ID: rand.Text(), Source: c.source, Type: typ, Time: time.Now().UTC(), Data: data}
	for _, opt := range opts {
		opt(&e)
	}
	trace := natsbus.Carrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	e.TraceParent, e.TraceState = trace.Get("traceparent"), trace.Get("tracestate")
	m, err := events.Encode(e, c.bus.Subjects())
	if err != nil {
		return Ticket{}, err
	}
	if _, err := events.Decode(m); err != nil {
		return Ticket{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	sequence, err := c.bus.Store(ctx, m)
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{ID: e.ID, Sequence: sequence}, nil
}

// Result is the terminal event of a request; exactly one field is set.
type Result struct {
	Completed *events.BuildCompleted
	Failed    *events.BuildFailed
	Canceled  *events.BuildCanceled
}

// Await returns the request's terminal event, whether it is stored already or yet
// to come. It waits until ctx ends and survives reconnects.
func (c *Client) Await(ctx context.Context, t Ticket) (Result, error) {
	var result Result
	err := c.Watch(ctx, t, func(e events.Event) bool {
		switch data := e.Data.(type) {
		case *events.BuildCompleted:
			result.Completed = data
		case *events.BuildFailed:
			result.Failed = data
		case *events.BuildCanceled:
			result.Canceled = data
		default:
			return true
		}
		return false
	})
	return result, err
}

// Watch calls visit for every event about the request, the stored ones first, until
// visit returns false, the terminal event was visited, or ctx ends (then with ctx's
// error). A terminal event that cannot be read is an error, not an endless wait.
func (c *Client) Watch(ctx context.Context, t Ticket, visit func(events.Event) bool) error {
	return c.watch(ctx, t, emitted(), requestOf, visit)
}

// watch visits the events of the given types whose subject is the ticket's.
func (c *Client) watch(ctx context.Context, t Ticket, types []events.Type, subjectOf func(events.Event) string, visit func(events.Event) bool) error {
	var unreadable error
	err := c.bus.Follow(ctx, types, natsbus.Start{Sequence: t.Sequence, Time: t.Since}, func(m events.Message) bool {
		e, err := events.Decode(m)
		if err != nil && e.Type.Terminal() && e.ID == events.EventID(t.ID, e.Type, 0) {
			unreadable = fmt.Errorf("%s ended with a %s that cannot be read; a newer Kiln may have written it: %w", t.ID, e.Type, err)
			return false
		}
		if err != nil || subjectOf(e) != t.ID {
			return true
		}
		return visit(e) && !e.Type.Terminal()
	})
	return cmp.Or(unreadable, err)
}

// Logs copies the log of a build to out: of one attempt, or of all if attempt is 0.
// With follow it goes on until the attempt's log ends. It survives reconnects.
func (c *Client) Logs(ctx context.Context, buildID string, attempt int, follow bool, out io.Writer) error {
	return c.bus.Logs().Read(ctx, buildID, attempt, follow, out)
}

// emitted are the types of the events that tell how a request fares.
func emitted() []events.Type {
	return []events.Type{
		events.TypeBuildQueued, events.TypeBuildStarted, events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled,
	}
}

// requestOf returns the request that an emitted event is about.
func requestOf(e events.Event) string {
	switch data := e.Data.(type) {
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
	default:
		return ""
	}
}
