package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"golang.org/x/term"

	"kiln/events/client"
	"kiln/events/natsbus"
)

// addresses is what `kiln up` writes to kiln.json in its data directory when it is
// ready.
type addresses struct {
	NATSURL  string `json:"nats_url"`
	Registry string `json:"registry"`
	HTTP     string `json:"http"`
	PID      int    `json:"pid"`
}

const addressFile = "kiln.json"

// defaultDataDir follows the XDG rules.
func defaultDataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "kiln")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "kiln-data"
	}
	return filepath.Join(home, ".local", "share", "kiln")
}

// url is the server to use: the configured one, that of a running `kiln up`, or the
// usual local one.
func (f natsFlags) url() string {
	if f.URL != "" {
		return f.URL
	}
	var a addresses
	if raw, err := os.ReadFile(filepath.Join(defaultDataDir(), addressFile)); err == nil {
		_ = json.Unmarshal(raw, &a)
	}
	return cmp.Or(a.NATSURL, nats.DefaultURL)
}

func (f natsFlags) connect(log zerolog.Logger) (*nats.Conn, error) {
	nc, err := natsbus.Connect(natsbus.Config{
		URL: f.url(), CredentialsFile: f.Credentials, NKeyFile: f.Nkey, User: f.User, Password: f.Password,
		InboxPrefix: f.InboxPrefix, CAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key, Log: log,
	})
	if err != nil {
		return nil, &exitError{code: exitNoConnection, cause: fmt.Errorf(
			"cannot use a NATS server at %s; start one with `kiln up`, or set --nats-url: %w", redactURL(f.url()), err)}
	}
	return nc, nil
}

// client connects for a command that asks.
func (f natsFlags) client(s streams, c *cli) (*client.Client, func(), error) {
	nc, err := f.connect(c.logger(s))
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

func (f topologyFlags) topology(prefix string) natsbus.Topology {
	return natsbus.Topology{
		Prefix: prefix, Replicas: f.Replicas, MaxAge: f.MaxAge, LogMaxAge: f.LogMaxAge, ContextMaxAge: f.ContextMaxAge, AckWait: f.AckWait,
		MaxAckPending: f.MaxAckPending, DuplicateWindow: f.DuplicateWindow,
	}
}

// logger writes to the error stream.
func (c *cli) logger(s streams) zerolog.Logger {
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel
	}
	out := s.err
	if c.LogFormat == "console" || (c.LogFormat == "auto" && isTerminal(s.err)) {
		out = zerolog.ConsoleWriter{Out: s.err, TimeFormat: "15:04:05", NoColor: !colours(s.err)}
	}
	return zerolog.New(out).Level(level).With().Timestamp().Logger()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// colours follows https://no-color.org.
func colours(w io.Writer) bool { return os.Getenv("NO_COLOR") == "" && isTerminal(w) }
