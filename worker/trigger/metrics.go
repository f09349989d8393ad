package trigger

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics of a trigger.
type Metrics struct {
	runs      *prometheus.CounterVec
	retries   prometheus.Counter
	start     prometheus.Histogram
	duration  *prometheus.HistogramVec
	inHand    prometheus.Gauge
	open      *prometheus.GaugeVec
	takeovers prometheus.Counter
	repairs   *prometheus.CounterVec
	errors    *prometheus.CounterVec
}

// NewMetrics registers the trigger's metrics with reg; a nil reg registers nothing.
// Durations are seconds.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	auto := promauto.With(reg)
	return &Metrics{
		runs: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_runs_total", Help: "Runs that reached their terminal event, by outcome (completed, failed, canceled) and error code.",
		}, []string{"outcome", "code"}),
		retries: auto.NewCounter(prometheus.CounterOpts{
			Name: "kiln_run_retries_total", Help: "Starts of runs that broke for reasons of Kiln's and were repeated.",
		}),
		start: auto.NewHistogram(prometheus.HistogramOpts{
			Name: "kiln_run_start_seconds", Help: "Time from when a run's image is there to the start of its process.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300},
		}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kiln_run_duration_seconds", Help: "Time that processes took, by runner and code (empty: success).",
			Buckets: []float64{.01, .1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600},
		}, []string{"runner", "code"}),
		inHand: auto.NewGauge(prometheus.GaugeOpts{Name: "kiln_runs_in_hand", Help: "Runs that this trigger has claimed."}),
		open: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kiln_runs_open", Help: "Runs that have not ended, by state (waiting, ready, starting, running), as far as this trigger knows.",
		}, []string{"state"}),
		takeovers: auto.NewCounter(prometheus.CounterOpts{
			Name: "kiln_run_takeovers_total", Help: "Runs that were taken over from a trigger that gave no sign of life or had stopped.",
		}),
		repairs: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_run_repairs_total", Help: "What was found undone: result (of a build, not heard), request (for a build, not published), end (of a run, not told).",
		}, []string{"kind"}),
		errors: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "kiln_run_errors_total", Help: "Trouble with NATS, by what was tried (fetch, watch, lease, store).",
		}, []string{"what"}),
	}
}
