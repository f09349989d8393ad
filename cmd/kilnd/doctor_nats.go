package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"kiln/events/natsbus"
)

// checkNATS looks at the server and at what is provisioned there.
func (d *doctorCmd) checkNATS(ctx context.Context) []check {
	const server, topology = "NATS", "JetStream"
	nc, err := d.NATS.Connect(zerolog.Nop())
	if err != nil {
		c := lacking(server, err, "see that a server runs there and that nats.url, the login and nats.ca are right")
		c.noConnection = true
		return []check{c, skipped(topology, "there is no connection")}
	}
	defer nc.Close()
	checks := []check{passed(server, fmt.Sprintf("nats-server %s at %s", nc.ConnectedServerVersion(), nc.ConnectedUrlRedacted()))}
	wanted := d.Stream.topology(d.NATS.Prefix)
	bus, err := natsbus.New(nc, wanted)
	if err != nil {
		return append(checks, lacking(topology, err, "correct nats.prefix and the stream.* settings"))
	}
	// What a user may not ask for is not answered.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := natsbus.Inspect(ctx, bus.JetStream(), wanted)
	if denied := nc.LastError(); errors.Is(denied, nats.ErrPermissionViolation) {
		return append(checks, lacking(topology, denied,
			"give this user the permissions of a worker (deploy/nats/roles.conf) and set nats.inbox_prefix as they say"))
	}
	if err != nil {
		return append(checks, lacking(topology, err, "start the server with JetStream (-js, or jetstream {} in its configuration), and allow it to the account"))
	}
	return append(checks, provisioned(topology, found))
}

// provisioned tells what an inspection found.
func provisioned(name string, found natsbus.Inspection) check {
	var lines, fixes []string
	if len(found.Missing) > 0 {
		lines = append(lines, "not there: "+strings.Join(found.Missing, ", "))
		fixes = append(fixes, "run `kiln provision` with the same settings")
	}
	for _, d := range found.Differences {
		lines = append(lines, d.String())
		fixes = append(fixes, d.Repair)
	}
	if len(lines) == 0 {
		return passed(name, strings.Join(found.Present, ", "))
	}
	if len(found.Differences) > 0 {
		fixes = append(fixes, "or set stream.* as the server has it")
	}
	return lacking(name, errors.New(strings.Join(lines, "\n")), strings.Join(fixes, "; "))
}
