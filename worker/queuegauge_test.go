package worker

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestQueueGaugeAsksRarelyAndHasNoValueWhileItCannot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked int
		var fail error
		reg := prometheus.NewPedanticRegistry()
		err := RegisterQueueGauge(reg, func(ctx context.Context) (uint64, error) {
			if limit, ok := ctx.Deadline(); !ok || time.Until(limit) > gaugeWait {
				t.Error("the question has no bound")
			}
			asked++
			return uint64(10 * asked), fail
		})
		if err != nil {
			t.Fatal(err)
		}
		expect := func(values []float64, questions int) {
			t.Helper()
			families, err := reg.Gather()
			var got []float64
			for _, f := range families {
				for _, m := range f.GetMetric() {
					got = append(got, m.GetGauge().GetValue())
				}
			}
			if !slices.Equal(got, values) || asked != questions || err != nil {
				t.Errorf("values %v after %d questions, want %v after %d (%v)", got, asked, values, questions, err)
			}
		}
		expect([]float64{10}, 1)
		time.Sleep(gaugeAge - 1)
		expect([]float64{10}, 1)
		time.Sleep(1 * time.Nanosecond)
		expect([]float64{20}, 2)
		fail = errors.New("no server")
		time.Sleep(gaugeAge)
		expect(nil, 3)
	})
}
