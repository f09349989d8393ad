// Package natsbus is the transport of events on NATS JetStream: topology, fetching,
// publishing, the ledger (KV), build logs and the trace carrier.
package natsbus

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

// Config says how to reach NATS. The zero value is the local default server
// without credentials.
type Config struct {
	// URL is a server or a comma-separated list. Defaults to nats://127.0.0.1:4222.
	URL string
	// Name is shown in the server's list of connections. Defaults to "kiln".
	Name string
	// CredentialsFile holds a JWT and its seed; NKeyFile a seed alone.
	CredentialsFile, NKeyFile string
	// User and Password log in where the server has users.
	User, Password string
	// CAFile verifies the server; CertFile and KeyFile are the client's certificate.
	CAFile, CertFile, KeyFile string
	// Timeout bounds one attempt to connect. Defaults to 5 s.
	Timeout time.Duration
	// Log receives connection events. The zero value is silent.
	Log zerolog.Logger
	// Extra options, for an in-process server for example.
	Options []nats.Option
}

// Connect connects and keeps reconnecting for as long as the connection is open.
// The first attempt has to succeed.
func Connect(c Config) (*nats.Conn, error) {
	if c.URL == "" {
		c.URL = nats.DefaultURL
	}
	if c.Name == "" {
		c.Name = "kiln"
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	opts := []nats.Option{
		nats.Name(c.Name), nats.Timeout(c.Timeout), nats.MaxReconnects(-1), nats.ReconnectWait(time.Second),
		nats.RetryOnFailedConnect(false),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.Log.Warn().Err(err).Msg("connection to NATS lost; reconnecting")
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.Log.Info().Str("server", nc.ConnectedUrlRedacted()).Msg("connection to NATS restored")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.Log.Warn().Err(err).Msg("NATS reports an error")
		}),
	}
	more, err := c.credentials()
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(c.URL, append(append(opts, more...), c.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return nc, nil
}

func (c Config) credentials() ([]nats.Option, error) {
	var opts []nats.Option
	if c.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	}
	if c.NKeyFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read nkey seed %s: %w", c.NKeyFile, err)
		}
		opts = append(opts, nkey)
	}
	if c.Password != "" && c.User == "" {
		return nil, errors.New("NATS password without a user")
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a NATS client certificate needs both its certificate and its key file")
	}
	if c.CertFile != "" {
		opts = append(opts, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	return opts, nil
}
