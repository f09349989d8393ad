package enginetest

import (
	"testing"

	"kiln/builder"
)

func TestFakeConforms(t *testing.T) {
	t.Parallel()
	Run(t, func(t *testing.T) Harness {
		t.Helper()
		return Harness{Engine: NewFake(Play()), Registry: NewRegistry(t), Base: builder.Image{}, Scripted: true}
	})
}
