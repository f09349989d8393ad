package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kiln/builder"
)

// Kinds of build roots, see Config.Root.
const (
	RootAuto  = "auto"
	RootTmpfs = "tmpfs"
	RootDisk  = "disk"
)

// mapped is the number of user and group ids that a container has.
const mapped = 65536

const (
	gib = int64(1) << 30
	mib = int64(1) << 20
)

// Sources is what an Engine needs of builder.Sources.
type Sources interface {
	Fetch(ctx context.Context, url, version string, env map[string]string, dir *os.Root) error
}

// Registries is what an Engine needs to know of image registries.
type Registries interface {
	// Access returns what it takes to use the registry at host (as in references), with
	// the named credentials (builder.Plan.RegistrySecret) first. Errors are of
	// builder's *Error.
	Access(ctx context.Context, host, secret string) (builder.Access, error)
}

// Config of an Engine. StateDir is required; every other field has a default.
type Config struct {
	// Executor is the path of the static Kaniko executor. Defaults to
	// "kaniko-executor" beside this program, else on PATH.
	Executor string
	// Runtime is the path or name of an OCI runtime. Defaults to the first of runc,
	// crun and runsc on PATH.
	Runtime string
	// StateDir holds build roots and the state of containers. It belongs to one
	// Engine at a time, which deletes what it finds in it.
	StateDir string
	// Root says where build roots are: "tmpfs", "disk", or "auto" (the default): on
	// tmpfs when the unpacked base image and 2 GiB are expected to fit what is left of
	// TmpfsBudget. A build that outgrows its tmpfs starts again on disk under "auto",
	// and fails under "tmpfs".
	Root string
	// TmpfsBudget is how many bytes the build roots of all running builds may take on
	// tmpfs. Defaults to half of the memory that is available when New is called.
	TmpfsBudget int64
	// Registries knows how the registries that a build names are reached. Nil: by an
	// anonymous user, and by plain HTTP on loopback.
	Registries Registries
	// SubUIDBase is the first host id of the ranges that containers are mapped to:
	// 65536 ids for each running build. Defaults to 100000.
	SubUIDBase uint32
	// Limits of builds that do not say. Defaults: memory 4 GiB, disk 20 GiB, 4096
	// processes, 1 h, CPU unlimited. A build root on tmpfs counts as disk: it does
	// not take from the memory limit.
	Limits builder.Limits
	// Sources fetches the code of plans that have a source. Nil: such plans are refused.
	Sources Sources
	// CgroupParent is the cgroup that those of builds are made in. Defaults to "/kiln".
	CgroupParent string
	// Grace is how long stopping a container may take before the runtime is killed.
	// Defaults to 10 s.
	Grace time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.Root, RootAuto)
	setDefault(&c.SubUIDBase, 100000)
	setDefault(&c.Limits.Memory, 4*gib)
	setDefault(&c.Limits.Disk, 20*gib)
	setDefault(&c.Limits.PIDs, 4096)
	setDefault(&c.Limits.Timeout, time.Hour)
	setDefault(&c.CgroupParent, "/kiln")
	setDefault(&c.Grace, 10*time.Second)
	if c.TmpfsBudget == 0 {
		c.TmpfsBudget = availableMemory() / 2
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	var faults []error
	if c.StateDir == "" {
		faults = append(faults, errors.New("state directory is not set"))
	}
	switch c.Root {
	case RootAuto, RootTmpfs, RootDisk:
	default:
		faults = append(faults, fmt.Errorf("root %q must be auto, tmpfs or disk", c.Root))
	}
	if c.SubUIDBase < mapped || c.SubUIDBase > math.MaxUint32-2*mapped {
		faults = append(faults, fmt.Errorf("first mapped user id %d must be from %d to %d", c.SubUIDBase, mapped, math.MaxUint32-2*mapped))
	}
	if c.TmpfsBudget < 0 || c.Grace < 0 {
		faults = append(faults, errors.New("tmpfs budget and grace must not be negative"))
	}
	if l := c.Limits; l.Memory < 0 || l.Disk < 0 || l.CPU < 0 || l.PIDs < 0 || l.Timeout < 0 {
		faults = append(faults, errors.New("limits must not be negative"))
	}
	if !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/" {
		faults = append(faults, fmt.Errorf("cgroup parent %q must be an absolute path below the root cgroup", c.CgroupParent))
	}
	return errors.Join(faults...)
}

// limits returns those of the plan, completed by the configuration.
func (c Config) limits(l builder.Limits) builder.Limits {
	setDefault(&l.Memory, c.Limits.Memory)
	setDefault(&l.Disk, c.Limits.Disk)
	setDefault(&l.PIDs, c.Limits.PIDs)
	setDefault(&l.Timeout, c.Limits.Timeout)
	setDefault(&l.CPU, c.Limits.CPU)
	return l
}
