package function

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"kiln/builder/dockerfile"
	"kiln/builder/lazyregexp"
)

var (
	platformPattern = lazyregexp.New(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9]+)?$`)
	componentRule   = lazyregexp.New(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagPattern      = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	templateField   = lazyregexp.New(`\{[^{}]*\}`)
	pipVersion      = lazyregexp.New(`^(?:(?:~=|===?|!=|<=?|>=?) ?[A-Za-z0-9.*+!-]+)(?:, ?(?:~=|===?|!=|<=?|>=?) ?[A-Za-z0-9.*+!-]+)*$`)
	packagePattern  = lazyregexp.New(`^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	versionPattern  = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)
	objectName      = lazyregexp.New(`^[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$`)
)

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
	d.checkImages(note)
	d.checkMLRun(note)
	if !pipVersion.MatchString(d.PipVersion) {
		note("the pip version", fmt.Errorf("%q is not a version specifier such as ~=23.0", d.PipVersion))
	}
	note("the Spark image", c.Spark.validate(c.Registry))
	note("the pull secret of Nuclio", checkObjectName(c.Nuclio.ImagePullSecret))
	note("the build secret of Nuclio", checkObjectName(c.Nuclio.BuildSecret))
	note("the registry secret", checkObjectName(c.RegistrySecret))
	note("the source owner", dockerfile.CheckOwner(c.SourceOwner))
	note("the service account", checkObjectName(c.ServiceAccount))
	for _, name := range slices.Sorted(maps.Keys(c.Projects)) {
		note("project "+name, c.Projects[name].check(c.Registry))
	}
	if d.MaxTimeout < 0 {
		note("the longest timeout", fmt.Errorf("%s is less than zero", d.MaxTimeout))
	}
	return errors.Join(faults...)
}

func (c Config) checkImages(note func(string, error)) {
	note("the default base image", checkConfiguredImage(c.Registry, c.DefaultBaseImage))
	for _, kind := range slices.Sorted(maps.Keys(c.ImageByKind)) {
		if image := c.ImageByKind[kind]; image != "" {
			note("the image for kind "+kind, checkConfiguredImage(c.Registry, image))
		}
	}
	if c.ImagesTag != "" && !tagPattern.MatchString(c.ImagesTag) {
		note("the images tag", fmt.Errorf("%q is not an image tag", c.ImagesTag))
	}
	note("the images registry", checkPrefix(c.ImagesRegistry))
	note("the vendor images registry", checkPrefix(c.VendorImagesRegistry))
	for _, pattern := range c.ImagesToEnrich {
		if _, err := regexp.Compile(pattern); err != nil {
			note("the images to enrich", err)
		}
	}
}

func (c Config) checkMLRun(note func(string, error)) {
	if !slices.Contains([]string{WithMLRunAuto, WithMLRunAlways, WithMLRunNever}, c.WithMLRun) {
		note("with_mlrun", fmt.Errorf("%q is none of auto, always and never", c.WithMLRun))
	}
	if c.MLRunVersion != "" && !versionPattern.MatchString(c.MLRunVersion) {
		note("the version of MLRun", fmt.Errorf("%q is not a version such as 1.7.0", c.MLRunVersion))
	}
	if !packagePattern.MatchString(c.MLRunPackage) {
		note("the package of MLRun", fmt.Errorf("%q is not the name of a package", c.MLRunPackage))
	}
	if c.MLRunVersionSpecifier != "" {
		note("the mlrun version specifier", dockerfile.CheckRequirement(c.MLRunVersionSpecifier))
	}
}

// checkObjectName reports why name cannot be that of an object of Kubernetes.
func checkObjectName(name string) error {
	if name != "" && !objectName.MatchString(name) {
		return fmt.Errorf("%.80q is not a name: lower case letters, digits, . and -, beginning and ending with a letter or digit", name)
	}
	return nil
}

// checkPrefix reports why prefix cannot stand in front of an image.
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := dockerfile.CheckBase(strings.TrimRight(prefix, "/") + "/x"); err != nil {
		return fmt.Errorf("%q is not a registry host with an optional lower case path", prefix)
	}
	return nil
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
