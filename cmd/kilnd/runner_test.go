package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"kiln/builder/registry"
)

func TestRunnerThatLacksSomethingSaysWhat(t *testing.T) {
	t.Parallel()
	images, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	for says, w := range map[string]*workerCmd{
		// Beside the program of this test there is none.
		"kiln-init":    {Engine: "sandbox"},
		"--kube-image": {Engine: "kube"},
	} {
		r, err := w.newRunner(t.Context(), filepath.Join(t.TempDir(), "state"), &service{registry: images}, zerolog.Nop())
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, %v, want an error with %q", r, err, says)
		}
	}
}
