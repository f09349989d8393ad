package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// sweep removes what an earlier process left: containers, cgroups and build roots.
// Build roots on tmpfs went with their containers. The lock of the state directory
// is held, so nothing of it can be in use.
func (e *Engine) sweep(ctx context.Context) error {
	names := append(e.cgroups.names(), e.runtime.containers()...)
	slices.Sort(names)
	var faults []error
	for _, name := range slices.Compact(names) {
		e.runtime.remove(ctx, name)
		if err := e.cgroups.remove(ctx, name); err != nil {
			faults = append(faults, err)
		}
	}
	e.cgroups.removeParent()
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("remove containers of an earlier process: %w", err)
	}
	if err := errors.Join(e.state.root.RemoveAll("runtime"), e.state.root.RemoveAll("builds"), e.state.root.MkdirAll("builds", 0o700)); err != nil {
		return fmt.Errorf("remove build roots of an earlier process: %w", err)
	}
	return nil
}
