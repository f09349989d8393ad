package function

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"kiln/builder/dockerfile"
	"kiln/builder/nuclio"
)

const (
	defaultTemplate   = "func-{project}-{name}"
	defaultRepository = "mlrun"
	defaultSpecifier  = "mlrun[complete]"
)

var (
	platformPattern = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)
	componentRule   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagPattern      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	templateField   = regexp.MustCompile(`\{[^{}]*\}`)
	pipVersion      = regexp.MustCompile(`^(?:(?:~=|===?|!=|<=?|>=?) ?[A-Za-z0-9.*+!-]+)(?:, ?(?:~=|===?|!=|<=?|>=?) ?[A-Za-z0-9.*+!-]+)*$`)
)

// Config is the operator's part of the rules. The zero value has MLRun's defaults,
// and no registry.
type Config struct {
	// Registry is where images without a registry of their own go: host[:port], with an
	// optional repository path ("registry.example.com/team"), or user/repository for
	// Docker Hub. No scheme. Empty: every function must name a full target.
	Registry string
	// DefaultBaseImage is the base when neither the function nor its kind has one.
	// Defaults to mlrun/mlrun.
	DefaultBaseImage string
	// TargetNameTemplate makes the image name of a function that names no target, from
	// {project} and {name}. Defaults to func-{project}-{name}.
	TargetNameTemplate string
	// MLRunVersionSpecifier is the requirement for mlrun when the request has none.
	// Empty: mlrun[complete], and on MLRun's own images the version of their tag.
	MLRunVersionSpecifier string
	// PipVersion is the version of pip for images that get mlrun. Defaults to ~=23.0.
	PipVersion string
	// ImageByKind are images of kinds whose function names none. Entries are put on top
	// of MLRun's: mlrun/mlrun for job, mpijob, serving, nuclio and remote, mlrun/ml-base
	// for dask, python:3.9 for application. An empty image takes an entry away.
	ImageByKind map[string]string
	// MaxTimeout is the longest timeout a request may ask for. Defaults to 4h.
	MaxTimeout time.Duration
	// Spark is the image that Spark functions start from.
	Spark Spark
	// Nuclio holds the rules for functions whose images Nuclio builds.
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
	setDefault(&c.PipVersion, "~=23.0")
	setDefault(&c.MaxTimeout, 4*time.Hour)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns all faults of the configuration, joined, or nil.
func (c Config) Validate() error {
	var faults []error
	note := func(field string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("configuration of %s: %w", field, err))
		}
	}
	d := c.withDefaults()
	note("the registry", checkRegistry(c.Registry))
	note("the target name template", checkTemplate(d.TargetNameTemplate))
	note("the default base image", checkConfiguredImage(c.Registry, d.DefaultBaseImage))
	for _, kind := range slices.Sorted(maps.Keys(d.ImageByKind)) {
		if image := d.ImageByKind[kind]; image != "" {
			note("the image for kind "+kind, checkConfiguredImage(c.Registry, image))
		}
	}
	if c.MLRunVersionSpecifier != "" {
		note("the mlrun version specifier", dockerfile.CheckRequirement(c.MLRunVersionSpecifier))
	}
	if !pipVersion.MatchString(d.PipVersion) {
		note("the pip version", fmt.Errorf("%q is not a version specifier such as ~=23.0", d.PipVersion))
	}
	note("the Spark image", c.Spark.validate(c.Registry))
	if d.MaxTimeout < 0 {
		note("the longest timeout", fmt.Errorf("%s is less than zero", d.MaxTimeout))
	}
	return errors.Join(faults...)
}

// checkRegistry tells apart the two values that are mixed up most: the address of
// a login ("https://index.docker.io/v1/") and the place for images.
func checkRegistry(registry string) error {
	host, repository := splitRegistry(registry)
	hub := host == "docker.io" || host == "index.docker.io"
	switch {
	case registry == "":
		return nil
	case strings.Contains(registry, "://"):
		return fmt.Errorf("%q has a scheme; the address with a scheme belongs into the credentials file (docker login), "+
			"the registry is a host and an optional path, such as docker.io/user or registry.example.com/team", registry)
	case hub && (repository == "v1" || repository == "v2"):
		return fmt.Errorf("%q is the login address of Docker Hub; the registry is docker.io/user", registry)
	case host == "" && !strings.Contains(repository, "/"):
		return fmt.Errorf("%q is neither a host (with a dot, a port, or localhost) nor user/repository; "+
			"for Docker Hub it is docker.io/user", registry)
	case dockerfile.CheckBase(joinPath(host, repository, "x")) != nil:
		return fmt.Errorf("%q is not a registry host with an optional lower case path", registry)
	default:
		return nil
	}
}

func checkTemplate(template string) error {
	for _, field := range templateField.FindAllString(template, -1) {
		if field != "{project}" && field != "{name}" {
			return fmt.Errorf("%q has the unknown field %s; there are {project} and {name}", template, field)
		}
	}
	if !strings.Contains(template, "{name}") {
		return fmt.Errorf("%q lacks {name}, so that functions would overwrite each other's images", template)
	}
	if dockerfile.CheckBase("h.example/"+expandTemplate(template, "a", "a")+":tag") != nil {
		return fmt.Errorf("%q does not make an image name", template)
	}
	return nil
}

func checkConfiguredImage(registry, image string) error {
	if image == scratch {
		return nil
	}
	_, err := parseImage(registry, image)
	return err
}

func expandTemplate(template, project, name string) string {
	return strings.NewReplacer("{project}", project, "{name}", name).Replace(template)
}
