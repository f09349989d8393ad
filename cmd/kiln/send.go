package main

import (
	"context"
	"errors"

	"kiln/cmd/cli"
	"kiln/events"
	"kiln/events/client"
)

// send publishes a request by ask, after its source if that is local. Without an id it
// gets a random one.
func send(ctx context.Context, kiln *client.Client, local *cli.LocalSource, id string, ask func(...client.RequestOption) (client.Ticket, error)) (client.Ticket, error) {
	if local != nil {
		if _, err := kiln.UploadContext(ctx, local.File); err != nil {
			return client.Ticket{}, err
		}
	}
	var opts []client.RequestOption
	if id != "" {
		opts = append(opts, client.WithID(id))
	}
	ticket, err := ask(opts...)
	if _, invalid := errors.AsType[*events.DecodeError](err); invalid {
		return ticket, cli.Usage(cli.Describe(err))
	}
	return ticket, err
}
