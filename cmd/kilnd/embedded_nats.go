package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"kiln/cmd/cli"
	"kiln/events/natsbus"
)

// natsServer is the NATS server of `kiln up`.
type natsServer struct{ s *server.Server }

// maxPayload lets requests in that are too large for Kiln, so that they get an
// answer instead of a closed connection.
const maxPayload = 8 << 20

func startNATS(dir, addr string, log zerolog.Logger) (*natsServer, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, cli.Usage(fmt.Errorf("--nats-addr: %w", err))
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, cli.Usage(fmt.Errorf("--nats-addr: %w", err))
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "kiln", Host: host, Port: port, JetStream: true, StoreDir: dir, MaxPayload: maxPayload,
		NoSigs: true, DisableJetStreamBanner: true,
	})
	if err != nil {
		return nil, fmt.Errorf("configure NATS server: %w", err)
	}
	problems := &natsLog{log: log}
	s.SetLoggerV2(problems, false, false, false)
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		s.Shutdown()
		return nil, fmt.Errorf("cannot start the NATS server on %s; is the address in use? choose another with --nats-addr (port 0 takes a free one): %w",
			addr, errors.New(problems.text()))
	}
	return &natsServer{s: s}, nil
}

func (n *natsServer) url() string { return n.s.ClientURL() }

func (n *natsServer) stop() {
	n.s.Shutdown()
	n.s.WaitForShutdown()
}

// connect connects within the process.
func (n *natsServer) connect(log zerolog.Logger) (*nats.Conn, error) {
	return natsbus.Connect(natsbus.Config{URL: n.url(), Name: "kiln-up", Log: log, Options: []nats.Option{nats.InProcessServer(n.s)}})
}

// natsLog passes the server's warnings on.
type natsLog struct {
	log  zerolog.Logger
	mu   sync.Mutex
	last string
}

// text is the last problem.
func (l *natsLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *natsLog) problem(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = fmt.Sprintf(format, v...)
	l.log.Error().Msg("nats: " + l.last)
}

// Noticef implements server.Logger.
func (l *natsLog) Noticef(format string, v ...any) { l.log.Debug().Msgf("nats: "+format, v...) }

// Warnf implements server.Logger.
func (l *natsLog) Warnf(format string, v ...any) { l.log.Debug().Msgf("nats: "+format, v...) }

// Fatalf implements server.Logger.
func (l *natsLog) Fatalf(format string, v ...any) { l.problem(format, v...) }

// Errorf implements server.Logger.
func (l *natsLog) Errorf(format string, v ...any) { l.problem(format, v...) }

// Debugf implements server.Logger.
func (l *natsLog) Debugf(string, ...any) {}

// Tracef implements server.Logger.
func (l *natsLog) Tracef(string, ...any) {}
