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
	s, w := &service{registry: images}, &workerCmd{}
	w.Trigger.Enabled = true
	// Beside the program of this test there is no kiln-init.
	_, err = s.newRunner(t.Context(), w.buildFlags, filepath.Join(t.TempDir(), "state"), platform{runner: w.sandboxRunner})
	if err == nil || !strings.Contains(err.Error(), "kiln-init") || !strings.Contains(err.Error(), "--no-trigger-enabled") {
		t.Errorf("in a sandbox: %v, want an error that says what is missing and how to do without", err)
	}
	if _, err := w.kubeRunner(t.Context(), s, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "--kube-image") {
		t.Errorf("on Kubernetes: %v, want an error with --kube-image", err)
	}
	w.Trigger.Enabled = false
	if r, err := s.newRunner(t.Context(), w.buildFlags, t.TempDir(), platform{runner: w.sandboxRunner}); err != nil || r.Runner != nil {
		t.Errorf("without runs: %v, %v, want none", r, err)
	}
}
