package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage that is configured below
	"github.com/rs/zerolog"
	"github.com/sirupsen/logrus"
)

// embeddedRegistry is the OCI registry of `kiln up`. Images survive a restart.
type embeddedRegistry struct {
	app    *handlers.App
	server *http.Server
	addr   string
	done   chan error
}

// startRegistry serves the images under dir on a loopback address; port 0 takes a
// free one.
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
	// The library logs every request through logrus's standard logger.
	logrus.SetOutput(io.Discard)
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": dir},
		"delete":     configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{
			"uploadpurging": map[any]any{"enabled": true, "age": "24h", "interval": "24h", "dryrun": false},
		},
	}}
	config.HTTP.Secret = rand.Text()
	app := handlers.NewApp(context.WithoutCancel(ctx), config)
	r := &embeddedRegistry{
		app: app, addr: listener.Addr().String(), done: make(chan error, 1),
		server: &http.Server{Handler: app, ReadHeaderTimeout: 10 * time.Second},
	}
	go func() { r.done <- r.server.Serve(listener) }()
	log.Debug().Str("address", r.addr).Msg("registry is up")
	return r, nil
}

// Addr is host:port.
func (r *embeddedRegistry) Addr() string { return r.addr }

// Close stops serving; requests under way get five seconds.
func (r *embeddedRegistry) Close() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Second, errors.New("closing the registry took too long"))
	defer cancel()
	err := r.server.Shutdown(ctx)
	if served := <-r.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, r.app.Shutdown())
}
