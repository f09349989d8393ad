//go:build chaos || load || bench

package main

import (
	"io"
	"os"

	"kiln/builder/rehearsal"
	runs "kiln/builder/run"
)

// rehearsed closes the engine that a rehearsal stands before.
type rehearsed struct {
	*rehearsal.Engine
	io.Closer
}

// wrapEngine puts a rehearsal before the engine when KILN_REHEARSAL says how.
func wrapEngine(e engine) (engine, error) {
	config, ok := os.LookupEnv("KILN_REHEARSAL")
	if !ok {
		return e, nil
	}
	r, err := rehearsal.New(e, []byte(config))
	return rehearsed{r, e}, err
}

// rehearsedRunner is a rehearsal in the runner's place when KILN_REHEARSAL says how, else
// nil.
func rehearsedRunner() (runs.Runner, error) {
	config, ok := os.LookupEnv("KILN_REHEARSAL")
	if !ok {
		return nil, nil
	}
	return rehearsal.NewRunner([]byte(config))
}
