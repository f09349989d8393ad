package kube

import (
	"strings"
	"testing"

	"go.uber.org/goleak"

	"kiln/builder"
	"kiln/builder/enginetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKubeConforms(t *testing.T) {
	t.Parallel()
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		t.Helper()
		c := newTestCluster(t, build)
		e := c.engine(t, testConfig())
		return enginetest.Harness{
			Engine: e, Registry: enginetest.NewRegistry(t), Base: builder.Image{}, Scripted: true,
			Leftovers: func() []string {
				if strings.Contains(t.Name(), "shutdown") {
					// There the Job goes on, as it should.
					return nil
				}
				return c.left(t)
			},
		}
	})
}
