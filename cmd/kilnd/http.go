package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kiln/cmd/cli"
)

// monitor serves /healthz, /readyz and /metrics.
type monitor struct {
	registry *prometheus.Registry
	server   *http.Server
	addr     string
	ready    atomic.Bool
	done     chan error
}

// newMonitor listens on addr; "off" gives a monitor that only collects.
func newMonitor(ctx context.Context, addr string, connected func() bool) (*monitor, error) {
	m := &monitor{registry: prometheus.NewRegistry(), done: make(chan error, 1)}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if addr == "off" {
		return m, nil
	}
	listener, err := listen(ctx, addr, "--http-addr")
	if err != nil {
		return nil, err
	}
	m.addr = listener.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !m.ready.Load() || !connected() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	m.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { m.done <- m.server.Serve(listener) }()
	return m, nil
}

func (m *monitor) close(ctx context.Context) error {
	if m.server == nil {
		return nil
	}
	err := m.server.Shutdown(ctx)
	if served := <-m.done; !errors.Is(served, http.ErrServerClosed) {
		return served
	}
	return err
}

// listen names the flag when the address cannot be used.
func listen(ctx context.Context, addr, flag string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s; choose another address with %s (port 0 takes a free one): %w", addr, flag, err)
	}
	return listener, nil
}

// loopback refuses addresses that others can reach.
func loopback(addr, flag string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return cli.Usage(fmt.Errorf("%s must be host:port: %w", flag, err))
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return cli.Usage(fmt.Errorf("%s must be a loopback address, not %s: there is no access control", flag, host))
	}
	return nil
}

func connected(nc *nats.Conn) func() bool {
	return func() bool { return nc.Status() == nats.CONNECTED }
}
