package sandbox

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"kiln/builder"
)

// RunnerConfig is that of a Runner. StateDir and Images are required; every other field
// has a default.
type RunnerConfig struct {
	// Launcher is the path of the static program kiln-init. Defaults to "kiln-init" beside
	// this program, else on PATH.
	Launcher string
	// Runtime is as Config.Runtime.
	Runtime string
	// StateDir holds unpacked images and what there is of runs. Several Runners, in
	// several processes of this machine, may share it. No Engine may have the same.
	StateDir string
	// Images knows how images are read.
	Images Images
	// Sources fetches the code of plans that have a source. Nil: such plans are refused.
	Sources Sources
	// SubUIDBase is the first host id of the 65536 that every run's container is mapped
	// to: one range, since all share the files of unpacked images. It must differ from
	// those of builds. Defaults to 1073741824.
	SubUIDBase uint32
	// Limits of runs that do not say. Defaults: memory 4 GiB, disk 20 GiB, 4096
	// processes, 24 h, CPU unlimited. Disk is what a run changes and adds, its log and its
	// source included.
	Limits builder.Limits
	// ImageSize bounds one unpacked image, CacheSize all that are kept, in bytes. Default
	// to 20 and 40 GiB. Images that are in use are kept even so.
	ImageSize, CacheSize int64
	// CgroupParent is as Config.CgroupParent.
	CgroupParent string
	// Grace is how long a process has after SIGTERM, and how long removing what is left
	// of it may take. Defaults to 10 s.
	Grace time.Duration
	// Keep is how long what is left of an attempt stays that nobody forgets. Defaults to
	// 24 h after its end, at the latest.
	Keep time.Duration
}

func (c RunnerConfig) withDefaults() RunnerConfig {
	setDefault(&c.SubUIDBase, 1<<30)
	setDefault(&c.Limits.Memory, 4*gib)
	setDefault(&c.Limits.Disk, 20*gib)
	setDefault(&c.Limits.PIDs, 4096)
	setDefault(&c.Limits.Timeout, 24*time.Hour)
	setDefault(&c.ImageSize, 20*gib)
	setDefault(&c.CacheSize, 40*gib)
	setDefault(&c.CgroupParent, "/kiln")
	setDefault(&c.Grace, 10*time.Second)
	setDefault(&c.Keep, 24*time.Hour)
	return c
}

func (c RunnerConfig) validate() error {
	var faults []error
	if c.StateDir == "" {
		faults = append(faults, errors.New("state directory is not set"))
	}
	if c.Images == nil {
		faults = append(faults, errors.New("nobody reads images"))
	}
	if c.SubUIDBase < mapped || c.SubUIDBase > math.MaxUint32-2*mapped {
		faults = append(faults, fmt.Errorf("first mapped user id %d must be from %d to %d", c.SubUIDBase, mapped, math.MaxUint32-2*mapped))
	}
	if l := c.Limits; l.Memory < 0 || l.Disk < 0 || l.CPU < 0 || l.PIDs < 0 || l.Timeout < 0 {
		faults = append(faults, errors.New("limits must not be negative"))
	}
	if c.Grace < 0 || c.Keep < 0 || c.ImageSize < 0 || c.CacheSize < 0 {
		faults = append(faults, errors.New("times and sizes must not be negative"))
	}
	if !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/" {
		faults = append(faults, fmt.Errorf("cgroup parent %q must be an absolute path below the root cgroup", c.CgroupParent))
	}
	return errors.Join(faults...)
}

// limits returns those of the plan, completed by the configuration.
func (c RunnerConfig) limits(l builder.Limits) builder.Limits {
	return Config{Limits: c.Limits}.limits(l)
}
