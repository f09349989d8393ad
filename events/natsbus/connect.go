// Package natsbus is the transport of events on NATS JetStream: topology, fetching,
// publishing, the ledger (KV), build logs and the trace carrier.
package natsbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
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
	// InboxPrefix begins the subjects that answers come to, where a user may not listen
	// to others; see Topology.InboxPrefix. Defaults to "_INBOX".
	InboxPrefix string
	// CAFile verifies the server; CertFile and KeyFile are the client's certificate.
	CAFile, CertFile, KeyFile string
	// Timeout bounds one attempt to connect. Defaults to 5 s.
	Timeout time.Duration
	// Retry lets Connect succeed although no server answers yet, and goes on trying
	// until one does: for what runs for long and may start before the server. See
	// Ready. A person who waits for an answer wants the error instead.
	Retry bool
	// Log receives connection events. The zero value is silent.
	Log zerolog.Logger
	// Extra options, for an in-process server for example.
	Options []nats.Option
}

// Connect connects, and reconnects for as long as the connection is open. The first
// attempt has to succeed, unless c.Retry is set. Errors say what to do.
func Connect(c Config) (*nats.Conn, error) {
	c.URL = cmp.Or(c.URL, nats.DefaultURL)
	c.Name = cmp.Or(c.Name, "kiln")
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	security, err := c.security()
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	opts := append(c.events(), nats.Name(c.Name), nats.Timeout(c.Timeout), nats.MaxReconnects(-1), nats.ReconnectWait(time.Second),
		nats.RetryOnFailedConnect(c.Retry), nats.IgnoreAuthErrorAbort())
	nc, err := nats.Connect(c.URL, slices.Concat(opts, security, c.Options)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", advise(err))
	}
	return nc, nil
}

// Ready waits until the connection is up or ctx ends, then with an error that says
// why it is not.
func Ready(ctx context.Context, nc *nats.Conn) error {
	changed := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)
	for {
		switch {
		case nc.IsConnected():
			return nil
		case nc.IsClosed():
			return fmt.Errorf("connect to NATS: %w", nats.ErrConnectionClosed)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last := nc.LastError(); last != nil {
				return fmt.Errorf("connect to NATS: %w: %w", ctx.Err(), advise(last))
			}
			return fmt.Errorf("connect to NATS: %w", ctx.Err())
		}
	}
}

// events logs what happens to the connection.
func (c Config) events() []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() {
				c.Log.Warn().Err(err).Msg("connection to NATS lost; reconnecting")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.Log.Info().Str("server", nc.ConnectedUrlRedacted()).Msg("connection to NATS restored")
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			c.Log.Debug().Str("server", nc.ConnectedUrlRedacted()).Msg("connected to NATS")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.Log.Warn().Err(err).Msg("NATS reports an error")
		}),
	}
}

// security returns the options of login and TLS. Files are looked at here: what is
// missing at the start would otherwise show late, or with Retry never.
func (c Config) security() ([]nats.Option, error) {
	logins := 0
	for _, set := range []bool{c.CredentialsFile != "", c.NKeyFile != "", c.User != ""} {
		if set {
			logins++
		}
	}
	switch {
	case logins > 1:
		return nil, errors.New("choose one of credentials file, nkey seed and user")
	case c.Password != "" && c.User == "":
		return nil, errors.New("there is a password without a user")
	case (c.CertFile == "") != (c.KeyFile == ""):
		return nil, errors.New("a client certificate needs both its certificate and its key file")
	}
	var opts []nats.Option
	if c.CredentialsFile != "" {
		if err := readable(c.CredentialsFile); err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		opts = append(opts, nats.UserCredentials(c.CredentialsFile))
	}
	if c.NKeyFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read nkey seed %s: %w", c.NKeyFile, err)
		}
		opts = append(opts, nkey)
	}
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password))
	}
	if c.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(c.InboxPrefix))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	if c.CertFile != "" {
		opts = append(opts, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	return opts, nil
}

func readable(name string) error {
	f, err := os.Open(name) //nolint:gosec // The operator names the file.
	if err != nil {
		return err
	}
	return f.Close()
}

// advise adds what to do to an error of connecting.
func advise(err error) error {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, plain := errors.AsType[tls.RecordHeaderError](err)
	var advice string
	switch {
	case unknown:
		advice = "name the file of the CA that signed the server's certificate"
	case host:
		advice = "use a name in the URL that stands in the server's certificate"
	case plain, errors.Is(err, nats.ErrSecureConnWanted):
		advice = "the server does not speak TLS here; use nats:// and no CA file"
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		advice = "the server refuses the login; check user and password, nkey seed or credentials file"
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrTimeout), errors.Is(err, syscall.ECONNREFUSED):
		advice = "no server answers; check that it runs and that the URL is right"
	default:
		return err
	}
	return fmt.Errorf("%s: %w", advice, err)
}
