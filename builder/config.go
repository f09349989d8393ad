package builder

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"kiln/builder/dockerfile"
	"kiln/builder/lazyregexp"
)

// Config of a Builder. The zero value is usable; every field says its default.
type Config struct {
	// Platform of images when the request does not say, as os/arch[/variant].
	// Defaults to linux and this machine's architecture.
	Platform string
	// Timeout of a build when the request does not say. Defaults to 30 min.
	Timeout time.Duration
	// Limits of a build. Zero fields mean the engine's defaults; Limits.Timeout is
	// not used, see Timeout.
	Limits Limits
	// Executor is the build tool. Defaults to the pinned Kaniko with
	// --snapshot-mode=redo.
	Executor Executor
	// Pip is where packages come from. The zero value is pip's own default.
	Pip Pip
	// DefaultArgs are build arguments of every build, by name. They are part of the
	// Dockerfile, so they must not be secret. A request's own of the same name goes first.
	DefaultArgs map[string]string
}

// defaultArgs returns the configured build arguments that the request has none of.
func (c Config) defaultArgs(r Request) []dockerfile.Default {
	args := make([]dockerfile.Default, 0, len(c.DefaultArgs))
	for _, name := range slices.Sorted(maps.Keys(c.DefaultArgs)) {
		if !slices.ContainsFunc(r.BuildArgs, func(a Arg) bool { return a.Name == name }) {
			args = append(args, dockerfile.Default{Name: name, Value: c.DefaultArgs[name]})
		}
	}
	return args
}

var platformPattern = lazyregexp.New(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)

// DefaultExecutor is the build tool that Kiln is made and tested with.
func DefaultExecutor() Executor {
	return Executor{Name: "osscontainertools/kaniko", Version: "v1.27.5", Flags: []string{"--snapshot-mode=redo"}}
}

func (c Config) withDefaults() Config {
	if c.Platform == "" {
		c.Platform = "linux/" + runtime.GOARCH
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Minute
	}
	if c.Executor.Name == "" {
		c.Executor = DefaultExecutor()
	}
	return c
}

func (c Config) validate() error {
	faults := []error{checkPlatform(c.Platform), c.Limits.validate(), c.Pip.validate()}
	for name := range c.DefaultArgs {
		if err := dockerfile.CheckName(name); err != nil {
			faults = append(faults, fmt.Errorf("default build argument: %w", err))
		}
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout %s is negative", c.Timeout))
	}
	return errors.Join(faults...)
}

func checkPlatform(platform string) error {
	if !platformPattern.MatchString(platform) {
		return fmt.Errorf("platform %q is not os/arch[/variant]", platform)
	}
	return nil
}

func (l Limits) validate() error {
	var faults []error
	for _, limit := range []struct {
		name     string
		negative bool
	}{
		{"timeout", l.Timeout < 0}, {"memory", l.Memory < 0}, {"disk", l.Disk < 0}, {"cpu", l.CPU < 0}, {"pids", l.PIDs < 0},
	} {
		if limit.negative {
			faults = append(faults, fmt.Errorf("limit of %s is negative", limit.name))
		}
	}
	return errors.Join(faults...)
}
