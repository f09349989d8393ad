package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage that is configured below
	"github.com/rs/zerolog"
	"github.com/sirupsen/logrus"
)

// registryGrace is how long requests under way may take when the registry closes.
const registryGrace = 5 * time.Second

// embeddedRegistry is the OCI registry of `kiln up`. Images survive a restart.
type embeddedRegistry struct {
	app    *handlers.App
	server *http.Server
	addr   string
	served chan error
	silent silentConns
	// busy is read-locked by every request, so that Close knows when the last one
	// has let go of the files: the server does not wait for those that it cuts off.
	busy sync.RWMutex
}

// ServeHTTP implements http.Handler.
func (r *embeddedRegistry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if !r.busy.TryRLock() {
		return // closed
	}
	defer r.busy.RUnlock()
	r.app.ServeHTTP(w, request)
}

// silentConns are the connections that nothing was asked on yet. A server that
// shuts down waits for them for five seconds; clients open them in advance.
type silentConns struct {
	mu  sync.Mutex
	all map[net.Conn]struct{}
}

// note is the server's ConnState hook.
func (s *silentConns) note(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state != http.StateNew {
		delete(s.all, conn)
		return
	}
	if s.all == nil {
		s.all = make(map[net.Conn]struct{})
	}
	s.all[conn] = struct{}{}
}

func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.all {
		_ = conn.Close()
	}
}

// startRegistry serves the images under dir on a loopback address; port 0 takes a
// free one. It runs until Close, also after ctx ends.
func startRegistry(ctx context.Context, dir, addr string, log zerolog.Logger) (*embeddedRegistry, error) {
	if err := loopback(addr, "--registry-addr"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create registry directory: %w", err)
	}
	listener, err := listen(ctx, addr, "--registry-addr")
	if err != nil {
		return nil, err
	}
	log = log.With().Str("component", "registry").Logger()
	routeLogrus(log)
	app, err := newRegistryApp(context.WithoutCancel(ctx), dir)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	r := &embeddedRegistry{
		app: app, addr: listener.Addr().String(), served: make(chan error, 1),
		server: &http.Server{
			ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			ErrorLog: slog.NewLogLogger(zerolog.NewSlogHandler(log), slog.LevelDebug),
		},
	}
	r.server.Handler, r.server.ConnState = r, r.silent.note
	go func() {
		err := r.server.Serve(listener)
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("registry stopped serving")
		}
		r.served <- err
	}()
	log.Debug().Str("address", r.addr).Str("dir", dir).Msg("registry is up")
	return r, nil
}

// newRegistryApp configures the library, which panics at what it cannot use.
func newRegistryApp(ctx context.Context, dir string) (app *handlers.App, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("configure registry on %s: %v", dir, fault)
		}
	}()
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": dir},
		"delete":     configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{
			"uploadpurging": map[any]any{"enabled": true, "age": "24h", "interval": "24h", "dryrun": false},
		},
	}}
	config.Catalog.MaxEntries = 1000
	config.HTTP.Secret = rand.Text()
	return handlers.NewApp(ctx, config), nil
}

// Addr is host:port.
func (r *embeddedRegistry) Addr() string { return r.addr }

// Close stops serving. Requests under way get five seconds, then they are cut off;
// what was answered before is on disk.
func (r *embeddedRegistry) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), registryGrace)
	defer cancel()
	r.silent.close()
	err := r.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = r.server.Close()
	}
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	r.busy.Lock() // for good
	return errors.Join(err, r.app.Shutdown())
}

// routeLogrus sends what the registry library logs to log, at debug level. The
// library knows no other logger than logrus's standard one, which nothing else here
// uses; a later call replaces the earlier one.
func routeLogrus(log zerolog.Logger) {
	library := logrus.StandardLogger()
	library.SetOutput(io.Discard)
	library.SetFormatter(noFormat{})
	if log.GetLevel() > zerolog.DebugLevel {
		library.ReplaceHooks(logrus.LevelHooks{})
		library.SetLevel(logrus.PanicLevel)
		return
	}
	hooks := logrus.LevelHooks{}
	hooks.Add(logrusHook{log})
	library.ReplaceHooks(hooks)
	library.SetLevel(logrus.InfoLevel)
}

// noFormat spares the work of formatting what is discarded.
type noFormat struct{}

// Format implements logrus.Formatter.
func (noFormat) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// logrusHook passes entries on with the fields that tell what happened.
type logrusHook struct{ log zerolog.Logger }

// Levels implements logrus.Hook.
func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h logrusHook) Fire(entry *logrus.Entry) error {
	event := h.log.Debug().Stringer("library_level", entry.Level)
	for key, value := range entry.Data {
		if slices.Contains([]string{
			"http.request.method", "http.request.uri", "http.response.status", "err.code", "err.message", "err.detail", "error",
		}, key) {
			event = event.Str(key, fmt.Sprint(value))
		}
	}
	event.Msg(entry.Message)
	return nil
}
