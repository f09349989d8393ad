package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"kiln/events/client"
	"kiln/events/natsbus"
)

// Addresses is what `kiln up` writes to kiln.json in its data directory when it is
// ready.
type Addresses struct {
	NATSURL  string `json:"nats_url"`
	Registry string `json:"registry"`
	HTTP     string `json:"http"`
	PID      int    `json:"pid"`
}

// AddressFile is where they are in the data directory.
const AddressFile = "kiln.json"

// NATSFlags say how to reach NATS.
type NATSFlags struct {
	URL         string `help:"Server, or several separated by commas. Defaults to a running 'kiln up', else nats://127.0.0.1:4222." placeholder:"URL"`
	Prefix      string `help:"Prefix of every subject and stream, to share a server."`
	Credentials string `type:"existingfile" help:"Credentials file (JWT and seed)." placeholder:"FILE"`
	Nkey        string `type:"existingfile" help:"File with an nkey seed." placeholder:"FILE"`
	User        string `help:"User name."`
	Password    string `help:"Password. Visible to other users of the machine when given as a flag: prefer the environment."`
	InboxPrefix string `help:"Begin of the subjects that answers come to, where users may not listen to others: _INBOX_KILN_WORKER." placeholder:"TEXT"`
	CA          string `type:"existingfile" help:"CA certificates that the server's is checked with." placeholder:"FILE"`
	Cert        string `type:"existingfile" help:"Client certificate." placeholder:"FILE"`
	Key         string `type:"existingfile" help:"Key of the client certificate." placeholder:"FILE"`
}

// DefaultDataDir follows the XDG rules.
func DefaultDataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "kiln")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "kiln-data"
	}
	return filepath.Join(home, ".local", "share", "kiln")
}

// Server is the server to use: the configured one, that of a running `kiln up`, or the
// usual local one.
func (f NATSFlags) Server() string {
	if f.URL != "" {
		return f.URL
	}
	var a Addresses
	if raw, err := os.ReadFile(filepath.Join(DefaultDataDir(), AddressFile)); err == nil {
		_ = json.Unmarshal(raw, &a)
	}
	return cmp.Or(a.NATSURL, nats.DefaultURL)
}

// Connect connects; an error has ExitNoConnection.
func (f NATSFlags) Connect(log zerolog.Logger) (*nats.Conn, error) {
	nc, err := natsbus.Connect(natsbus.Config{
		URL: f.Server(), CredentialsFile: f.Credentials, NKeyFile: f.Nkey, User: f.User, Password: f.Password,
		InboxPrefix: f.InboxPrefix, CAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key, Log: log,
	})
	if err != nil {
		return nil, &ExitError{Code: ExitNoConnection, Cause: fmt.Errorf(
			"cannot use a NATS server at %s; start one with `kiln up`, or set --nats-url: %w", RedactURL(f.Server()), err)}
	}
	return nc, nil
}

// Client connects for a command that asks. The caller calls the function in the end.
func (f NATSFlags) Client(s Streams, g *Globals) (*client.Client, func(), error) {
	nc, err := f.Connect(g.Logger(s))
	if err != nil {
		return nil, nil, err
	}
	made, err := client.New(nc, client.WithPrefix(f.Prefix), client.WithSource("/kiln/cli"))
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return made, nc.Close, nil
}
