package worker

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of a queueGauge: how old an answer may be, and how long to wait for one.
const (
	gaugeAge  = 5 * time.Second
	gaugeWait = 2 * time.Second
)

// RegisterQueueGauge registers kiln_queue_pending with reg: the requests that wait, about
// the same number from every worker. Pending is asked when the metric is collected, at
// most every 5 s and for at most 2 s. While it fails there is no value rather than an old
// one.
func RegisterQueueGauge(reg prometheus.Registerer, pending func(context.Context) (uint64, error)) error {
	return reg.Register(&queueGauge{pending: pending, desc: prometheus.NewDesc(
		"kiln_queue_pending", "Requests that wait: for a worker to take them in, for a slot, or for a build that they share.", nil, nil)})
}

type queueGauge struct {
	pending func(context.Context) (uint64, error)
	desc    *prometheus.Desc

	mu    sync.Mutex
	asked time.Time
	value uint64
	known bool
}

// Describe implements prometheus.Collector.
func (g *queueGauge) Describe(out chan<- *prometheus.Desc) { out <- g.desc }

// Collect implements prometheus.Collector.
func (g *queueGauge) Collect(out chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked.IsZero() || time.Since(g.asked) >= gaugeAge {
		// The interface has no context to hand on.
		ctx, cancel := context.WithTimeout(context.Background(), gaugeWait)
		defer cancel()
		value, err := g.pending(ctx)
		g.value, g.known, g.asked = value, err == nil, time.Now()
	}
	if g.known {
		out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(g.value))
	}
}
