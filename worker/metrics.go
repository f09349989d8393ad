package worker

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics of a worker.
type Metrics struct {
	requests    *prometheus.CounterVec
	retries     *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	queueTime   prometheus.Histogram
	inFlight    prometheus.Gauge
	fetchErrors prometheus.Counter
	leaseErrors prometheus.Counter
	takeovers   prometheus.Counter
	repairs     *prometheus.CounterVec
}

// NewMetrics registers the worker's metrics with reg; a nil reg registers nothing.
// Durations are seconds.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	buckets := []float64{.01, .05, .1, .5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600}
	return &Metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_requests_total",
			Help: "Requests that reached their terminal event, by outcome (built, reused, not_needed, failed, canceled) and error code.",
		}, []string{"outcome", "code"}),
		retries: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_request_retries_total",
			Help: "Requests handed back to the queue, by code (unavailable, busy, interrupted).",
		}, []string{"code"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kiln_build_duration_seconds", Help: "Time that engines took, by engine and code (empty: success).", Buckets: buckets,
		}, []string{"engine", "code"}),
		queueTime: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "kiln_queue_duration_seconds", Help: "Time from the storing of a request to its first handling.", Buckets: buckets,
		}),
		inFlight: auto.NewGauge(prometheus.GaugeOpts{
			Name: "kiln_requests_in_flight", Help: "Requests that are being handled.",
		}),
		fetchErrors: auto.NewCounter(prometheus.CounterOpts{
			Name: "kiln_fetch_errors_total", Help: "Failed fetches from the queue.",
		}),
		leaseErrors: auto.NewCounter(prometheus.CounterOpts{
			Name: "kiln_lease_errors_total", Help: "Failed renewals of a lease or of a message's redelivery timer.",
		}),
		repairs: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_reconciler_repairs_total",
			Help: "What was found undone and repaired: request (had no outcome), entry (was left in the backlog), tag (was not at its newest image), claim (of a build that nobody waits for).",
		}, []string{"kind"}),
		takeovers: auto.NewCounter(prometheus.CounterOpts{
			Name: "kiln_takeovers_total", Help: "Builds opened to all because their worker gave no sign of life for a lease.",
		}),
	}
}
