package runtest

import (
	"testing"

	"go.uber.org/goleak"

	"kiln/builder/run"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	t.Parallel()
	Run(t, func(*testing.T) Harness {
		fake := NewFake(Play)
		return Harness{
			Runner: fake, Another: func(*testing.T) run.Runner { return fake.Another() }, MaxResults: run.MaxResults,
			Image: "registry.example.com/probe@sha256:" + NewPlan("", "image").RunID,
		}
	})
}
