package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"kiln/events"
	"kiln/events/natsbus"
)

// Dead returns the requests that were given up for reasons of Kiln's, oldest first,
// without those that Redrive published again.
func (c *Client) Dead(ctx context.Context) ([]*events.BuildDead, error) {
	m, err := c.morgue(ctx)
	if err != nil {
		return nil, err
	}
	var left []*events.BuildDead
	for _, dead := range m.dead {
		if _, again := m.requested[redriveID(dead.RequestID)]; !again {
			left = append(left, dead)
		}
	}
	return left, nil
}

// Redrive publishes a request that Dead lists again, as it was, under the id
// "<request id>.redrive.1"; should that one die too, the next is "….redrive.2". Doing so
// twice publishes once and returns the same ticket. The error matches ErrUnknown when no
// such request is dead.
func (c *Client) Redrive(ctx context.Context, requestID string) (Ticket, error) {
	m, err := c.morgue(ctx)
	if err != nil {
		return Ticket{}, err
	}
	id := redriveID(requestID)
	for _, dead := range m.dead {
		if dead.RequestID != requestID {
			continue
		}
		if sequence, again := m.requested[id]; again {
			return Ticket{ID: id, Sequence: sequence}, nil
		}
		return c.RequestBuild(ctx, dead.Request, WithID(id))
	}
	return Ticket{}, fmt.Errorf("redrive %.200q: %w among the dead", requestID, ErrUnknown)
}

// morgue is what the stream tells of dead requests.
type morgue struct {
	dead []*events.BuildDead
	// requested has the sequence of every redriven request.
	requested map[string]uint64
}

func (c *Client) morgue(ctx context.Context) (morgue, error) {
	m := morgue{requested: map[string]uint64{}}
	seen := map[string]bool{}
	err := c.bus.Scan(ctx, []events.Type{events.TypeBuildRequested, events.TypeBuildDead}, natsbus.Start{}, func(msg events.Message) bool {
		e, err := events.Decode(msg)
		switch dead, ok := e.Data.(*events.BuildDead); {
		case err != nil:
		case ok && !seen[dead.RequestID]:
			seen[dead.RequestID] = true
			m.dead = append(m.dead, dead)
		case e.Type == events.TypeBuildRequested && redriven.MatchString(e.ID) && m.requested[e.ID] == 0:
			m.requested[e.ID] = sequenceOf(msg)
		}
		return true
	})
	return m, err
}

// sequenceOf reads the sequence off the id that the transport gives: "seq:BUILD:42".
func sequenceOf(m events.Message) uint64 {
	n, _ := strconv.ParseUint(m.FallbackID[strings.LastIndexByte(m.FallbackID, ':')+1:], 10, 64)
	return n
}

var redriven = regexp.MustCompile(`^(.*)\.redrive\.([1-9][0-9]{0,8})$`)

// maxID is the length of the longest request id.
const maxID = 200

// redriveID names the next try of a request. An id that was made of the stream's sequence
// may not be used by requesters, so it loses its colons; one that is too long its text.
func redriveID(id string) string {
	base, n := strings.ReplaceAll(id, ":", "-"), 1
	if !strings.HasPrefix(id, "seq:") {
		base = id
	}
	if parts := redriven.FindStringSubmatch(base); parts != nil {
		before, _ := strconv.Atoi(parts[2]) // at most nine digits
		base, n = parts[1], before+1
	}
	next := func() string { return base + ".redrive." + strconv.Itoa(n) }
	if len(next()) > maxID {
		base = fmt.Sprintf("%x", sha256.Sum256([]byte(base)))
	}
	return next()
}
