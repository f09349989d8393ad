//go:build kube

package kube

import (
	"strings"
	"testing"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/kube/kubetest"
)

// An API server, its controllers and its scheduler are real; the node plays.
func TestKubeConformsOnARealAPIServer(t *testing.T) {
	t.Parallel()
	c := kubetest.Real(t)
	team := newTeam(t, c, nil)
	newScriptedKubelet(t, c, "conform")
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		t.Helper()
		cfg := team.config("conform")
		return enginetest.Harness{
			Engine: team.engine(t, cfg), Registry: enginetest.NewRegistry(t), Base: builder.Image{}, Scripted: true,
			Leftovers: func() []string { return team.leftBy(t, cfg) },
		}
	})
}

// leftBy is left, for tests of the suite: after a shutdown the Job goes on.
func (c *team) leftBy(t *testing.T, cfg Config) []string {
	t.Helper()
	if strings.Contains(t.Name(), "shutdown") {
		return nil
	}
	return c.left(cfg)
}
