package kube

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	runs "kiln/builder/run"
	"kiln/builder/run/runtest"
)

// endRun starts a run and cancels it.
func endRun(t *testing.T, c *testCluster) {
	t.Helper()
	c.play = probe
	r, err := NewRunner(t.Context(), c.client, runnerConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := r.Run(ctx, runtest.NewPlan(probeImage, t.Name(), "wait"), runs.Watch{}); builder.KindOf(err) != builder.KindTimeout {
		t.Fatalf("a run that has to end: %v", err)
	}
}

// The test cluster refuses what the Role does not grant, so that every test of the
// engine needs the Role. This one sees to it that nothing else is in it.
func TestRoleGrantsWhatIsCalledAndNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, started(func(p *fakePod) {
			pass(t.Context(), time.Minute)
			p.exit(containerKaniko, 0, "Completed", someDigest)
		}))
		e, err := New(t.Context(), c.client, testConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = e.Close() }()
		// Left and joined, so that the Job is read too.
		_ = endAfter(t, e, testPlan(), 10*time.Second, builder.ErrShutdown)
		if _, err := e.Run(t.Context(), testPlan(), &strings.Builder{}); err != nil {
			t.Fatal(err)
		}
		// Without a Pod, the events are asked.
		c.play = func(_ context.Context, p *fakePod) { event(p, "exceeded quota") }
		if _, err := e.Run(t.Context(), testPlan(), &strings.Builder{}); err == nil {
			t.Fatal("a build without a Pod succeeded")
		}
		endRun(t, c)
		granted := map[string]bool{}
		for _, rule := range readRole(t).Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted[verb+" "+resource] = true
				}
			}
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(granted)), slices.Sorted(maps.Keys(c.calls()))); diff != "" {
			t.Errorf("calls (-granted +made):\n%s", diff)
		}
	})
}
