package function

import (
	"maps"
	"time"

	"kiln/builder/nuclio"
)

const (
	defaultTemplate   = "func-{project}-{name}"
	defaultRepository = "mlrun"
)

// Values of Config.WithMLRun.
const (
	WithMLRunAuto   = "auto"
	WithMLRunAlways = "always"
	WithMLRunNever  = "never"
)

// Config is the operator's part of the rules. The zero value has MLRun's defaults,
// no registry, and no version of MLRun.
type Config struct {
	// Registry is where images without a registry of their own go: host[:port], with an
	// optional repository path ("registry.example.com/team"), or user/repository for
	// Docker Hub. No scheme. Empty: every function must name a full target.
	Registry string
	// RegistrySecret names the credentials of builds whose target is at the configured
	// registry and whose function names none (docker_registry_secret).
	RegistrySecret string
	// DefaultBaseImage is the base when neither the function nor its kind has one.
	// Defaults to mlrun/mlrun.
	DefaultBaseImage string
	// TargetNameTemplate makes the image name of a function that names no target, from
	// {project} and {name}. Defaults to func-{project}-{name}. Targets that are named
	// below the configured registry and repository must begin with it.
	TargetNameTemplate string
	// WithMLRun says whether mlrun is installed when neither the request nor
	// spec.build.with_mlrun does: auto (or empty) is the rule of MLRun's client, see
	// Input.WithMLRun; always and never speak for themselves. Images that have it are
	// left alone.
	WithMLRun string
	// MLRunVersion is the version of MLRun ("1.7.0"). A request's client version goes
	// first. It is the tag of MLRun's images that are named without one, and the version
	// of mlrun that is installed. Empty: such images stand for latest, and pip chooses.
	MLRunVersion string
	// MLRunPackage is the Python package. Defaults to mlrun.
	MLRunPackage string
	// MLRunVersionSpecifier is the requirement for mlrun when the request has none.
	// Empty: it is made of MLRunPackage and the version, or on MLRun's own images of
	// their tag.
	MLRunVersionSpecifier string
	// ImagesTag is the tag of MLRun's images that are named without one, in place of a
	// version.
	ImagesTag string
	// ImagesRegistry and VendorImagesRegistry are put in front of MLRun's images and of
	// others, where one of ImagesToEnrich matches. Host with an optional path.
	ImagesRegistry, VendorImagesRegistry string
	// ImagesToEnrich are regular expressions, which match at the beginning of an image
	// with its tag. Nil: ^mlrun/* and python:3.9.
	ImagesToEnrich []string
	// PipVersion is the version of pip for images that get mlrun. Defaults to ~=23.0.
	PipVersion string
	// ImageByKind are images of kinds whose function names none. Entries are put on top
	// of MLRun's: mlrun/mlrun for job, mpijob, serving, nuclio and remote, mlrun/ml-base
	// for dask, python:3.9 for application. An empty image takes an entry away.
	ImageByKind map[string]string
	// SourceOwner owns the code in images, "uid:gid". Empty: root.
	SourceOwner string
	// NodeSelector is the node selector of builds; the project's and the function's are
	// put on top.
	NodeSelector map[string]string
	// ServiceAccount is that of builds whose project and function name none.
	ServiceAccount string
	// Projects are defaults of projects, by name.
	Projects map[string]Project
	// MaxTimeout is the longest timeout a request may ask for. Defaults to 4h.
	MaxTimeout time.Duration
	// Spark is the image that Spark functions start from.
	Spark Spark
	// Nuclio holds the rules for functions whose images Nuclio builds. Its BuildSecret
	// defaults to RegistrySecret.
	Nuclio nuclio.Config
}

func (c Config) withDefaults() Config {
	byKind := map[string]string{
		"job": "mlrun/mlrun", "mpijob": "mlrun/mlrun", "serving": "mlrun/mlrun", "nuclio": "mlrun/mlrun",
		"remote": "mlrun/mlrun", "dask": "mlrun/ml-base", "application": "python:3.9",
	}
	maps.Copy(byKind, c.ImageByKind)
	c.ImageByKind = byKind
	setDefault(&c.DefaultBaseImage, "mlrun/mlrun")
	setDefault(&c.TargetNameTemplate, defaultTemplate)
	setDefault(&c.WithMLRun, WithMLRunAuto)
	setDefault(&c.MLRunPackage, "mlrun")
	setDefault(&c.PipVersion, "~=23.0")
	setDefault(&c.MaxTimeout, 4*time.Hour)
	setDefault(&c.Nuclio.BuildSecret, c.RegistrySecret)
	if c.ImagesToEnrich == nil {
		c.ImagesToEnrich = []string{"^mlrun/*", "python:3.9"}
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
