package function_test

import (
	"regexp"
	"slices"
	"strings"
)

// deviation is a rule about facts that are not so in Kiln.
type deviation struct {
	// Section is the part of docs/mlrun-compat.md, Rule says what MLRun does.
	Section, Rule string
	// Verdict is better or notApplicable, Reason says why.
	Verdict verdict
	Reason  string
	// Whole says that a case about it is not applicable as a whole; otherwise only the
	// fact is passed over.
	Whole  bool
	Covers func(c mlrunCase, d difference) bool
}

// Sections of docs/mlrun-compat.md, in its order.
const (
	inFields       = "The function object"
	inDecision     = "When an image is built"
	inProject      = "Project defaults"
	inBase         = "Base image"
	inTarget       = "Target image"
	inRequirements = "Requirements and mlrun"
	inDockerfile   = "Dockerfile"
	inSource       = "Source"
	inArgs         = "builder_env and extra_args"
	inSecrets      = "Secrets and credentials"
	inEngine       = "The builder"
	inStates       = "States, logs and the API"
	inNuclio       = "Nuclio"
	inImages       = "Spark and project images"
)

func sections() []string {
	return []string{
		inFields, inDecision, inProject, inBase, inTarget, inRequirements, inDockerfile, inSource, inArgs, inSecrets, inEngine, inStates, inNuclio, inImages,
	}
}

// deviations are all rules by which a fact may differ.
func deviations() []deviation {
	return slices.Concat(
		decisionDeviations(), imageDeviations(), requirementDeviations(), sourceDeviations(), argDeviations(), nuclioDeviations(), imageCallDeviations(), foreignDeviations())
}

// field covers differences of these fields, and what is below them.
func field(fields ...string) func(mlrunCase, difference) bool {
	return func(_ mlrunCase, d difference) bool { return isField(d, fields...) }
}

func isField(d difference, fields ...string) bool {
	return slices.ContainsFunc(fields, func(f string) bool { return d.Field == f || strings.HasPrefix(d.Field, f+".") })
}

// wantsNoBuild reports whether MLRun ends without a build.
func wantsNoBuild(d difference) bool {
	return slices.Contains([]string{"ready_without_build", "ready", "ready: true", "build required: false", "false"}, d.Want)
}

// oneMore reports whether a printed list has one entry in front of those of another.
func oneMore(longer, shorter string) bool {
	return strings.HasSuffix(longer, " "+strings.TrimPrefix(shorter, "["))
}

// build returns a text of spec.build.
func (c mlrunCase) build(key string) string { return textAt(c.function, "spec", "build", key) }

func (c mlrunCase) list(key string) []string { return textsAt(c.function, "spec", "build", key) }

func (c mlrunCase) flag(path ...string) bool {
	on, _ := at(c.function, path...).(bool)
	return on
}

// base returns the image that the function starts from, as it is written.
func (c mlrunCase) base() string {
	if base := c.build("base_image"); base != "" {
		return base
	}
	return textAt(c.function, "spec", "image")
}

func decisionDeviations() []deviation {
	return []deviation{
		{
			Section: inDecision, Rule: "Extra Dockerfile text is no reason to build: alone on a base with mlrun it is lost.",
			Verdict: better, Reason: "extra counts like commands and requirements.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "result", "requires_build") && wantsNoBuild(d) && strings.HasPrefix(d.Got, string(started)) &&
					strings.Contains(d.Got, "adds extra Dockerfile text")
			},
		},
		{
			Section: inDecision, Rule: "A source that is loaded when the function runs makes a build, of an image with nothing new in it.",
			Verdict: better, Reason: "Nothing goes into the image, so the base is used as it is, as MLRun's client has it (requires_build).",
			Covers: func(c mlrunCase, d difference) bool {
				project, _ := get[bool](c.in.object("project_spec"), "load_source_on_run")
				return isField(d, "result") && c.build("source") != "" && (project || c.flag("spec", "build", "load_source_on_run")) && d.Want == "build_started" &&
					strings.HasPrefix(d.Got, string(notNeeded))
			},
		},
		{
			Section: inProject, Rule: "The project's default image makes a function look deployed: with skip_deployed or auto_build it is never built.",
			Verdict: better, Reason: "Only the function's own spec.image says that it has an image.",
			Covers: func(c mlrunCase, d difference) bool {
				image, _ := get[string](c.in.object("project_spec"), "default_image")
				skip, _ := get[bool](c.in.object("request"), "skip_deployed")
				return (isField(d, "after_enrichment") || isField(d, "result") && wantsNoBuild(d)) && image != "" && skip && strings.Contains(d.Got, string(started))
			},
		},
		{
			Section: inDecision, Rule: "Kinds of Nuclio (nuclio, remote, serving) count as functions that need a build.",
			Verdict: notApplicable, Reason: "Nuclio builds their images.", Whole: true,
			Covers: func(c mlrunCase, _ difference) bool {
				return c.group == "client-spec" && slices.Contains([]string{"nuclio", "remote", "serving"}, textAt(c.function, "kind"))
			},
		},
	}
}

var (
	registryPort = regexp.MustCompile(`^[^/]+:\d+/(?:.*/)?mlrun/[^/:@]+$`)
	mlrunImage   = regexp.MustCompile(`(?:^|/)mlrun/(?:mlrun|mlrun-gpu|ml-base|mlrun-kfp)(?:[:@]|$)`)
	badPin       = regexp.MustCompile(`==\d+\.\d+\.\d+-(?:\S+-)?(?:gpu|py\d+)\b`)
)

func imageDeviations() []deviation {
	return []deviation{
		{
			Section: inBase, Rule: "Any colon in an image counts as its tag, so that MLRun's images get none at a registry with a port, and no pin.",
			Verdict: better, Reason: "References are parsed.",
			Covers: func(c mlrunCase, d difference) bool {
				return registryPort.MatchString(c.base()) && (isField(d, "base_image") && strings.HasPrefix(d.Got, d.Want+":") ||
					isField(d, "requirements_file") && oneMore(d.Got, d.Want) || isField(d, "warnings") && d.Want == "1" && d.Got == "0")
			},
		},
		{
			Section: inBase, Rule: "Images are compared by substring: mlrun/mlrun-api, for one, counts as an image that has mlrun.",
			Verdict: better, Reason: "References are parsed; the images with mlrun are mlrun/mlrun, mlrun-gpu, mlrun-kfp and ml-base, at any registry and below any path.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "result", "requirements_file", "dockerfile.steps", "warnings") && strings.Contains(c.base(), "mlrun/ml") && !mlrunImage.MatchString(c.base())
			},
		},
		{
			Section: inBase, Rule: "References are not checked before the build; a broken digest reaches the executor.",
			Verdict: better, Reason: "What is no image reference is refused with the field that it stands in.",
			Covers: field("tag.reference"),
		},
		{
			Section: inBase, Rule: "Up to 1.8 a function without an image starts from the default base image, whatever its kind.",
			Verdict: better, Reason: "As in MLRun 1.9 and later, the image of the kind goes first.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "result", "base_image", "stored_base_image", "requirements_file") && c.base() == "" &&
					slices.Contains([]string{"dask", "application"}, textAt(c.function, "kind"))
			},
		},
		{
			Section: inTarget, Rule: "docker_registry may be anything: a login address with its scheme (https://index.docker.io/v1/) or a word that is no host breaks every image name.",
			Verdict: better, Reason: "Such a value is refused at the start, and the message says which of the two values of Docker Hub is meant.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "registry", "secret") && strings.Contains(d.Got, "configuration of the registry:")
			},
		},
		{
			Section: inTarget, Rule: "The repository of the registry is left out of a short name that contains its text anywhere (.steam-app and repository team).",
			Verdict: better, Reason: "It is left out where the short name begins with it as a path.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "destination") && strings.HasPrefix(c.build("image"), ".")
			},
		},
		{
			Section: inTarget, Rule: "http:// in front of a target stays there, so that nothing can be pushed.",
			Verdict: better, Reason: "Both schemes are cut off, and the reason of the build says so.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "destination", "warnings") && strings.HasPrefix(c.build("image"), "http://")
			},
		},
		{
			Section: inTarget, Rule: "A docker_registry of the form user/repository has no host, so that short names are refused.",
			Verdict: better, Reason: "It is Docker Hub, as in every other reference.",
			Covers: func(c mlrunCase, d difference) bool {
				registry, _ := get[string](c.in.object("config"), "httpdb.builder.docker_registry")
				host, _, path := strings.Cut(registry, "/")
				return isField(d, "result") && path && !strings.ContainsAny(host, ".:") && host != "localhost" && strings.HasPrefix(d.Got, string(started))
			},
		},
	}
}

func requirementDeviations() []deviation {
	return []deviation{
		{
			Section: inRequirements, Rule: "Tags with -gpu or -py39 count as versions, and give a requirement that pip cannot find.",
			Verdict: better, Reason: "The suffix is no part of the version.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "requirements_file", "tag") && badPin.MatchString(d.Want) && !badPin.MatchString(d.Got)
			},
		},
		{
			Section: inRequirements, Rule: "Every deploy puts a requirement for mlrun in front, even where the function lists one; two versions conflict.",
			Verdict: better, Reason: "A requirement for mlrun that is listed stays the only one, unless the request names another.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "requirements_file") && oneMore(d.Want, d.Got) &&
					slices.ContainsFunc(c.list("requirements"), func(s string) bool { return strings.HasPrefix(s, "mlrun") })
			},
		},
		{
			Section: inRequirements, Rule: "What is added to commands and requirements stays in the stored function.",
			Verdict: better, Reason: "Kiln works on copies: the same function gives the same image every time.",
			Covers: field("stored_requirements", "stored_commands"),
		},
		{
			Section: inRequirements, Rule: "The server takes requirement lines as they come; only the client drops comments, blanks and surrounding space.",
			Verdict: better, Reason: "Publishers without MLRun's client get the client's rules too; for pip the lines mean the same.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "requirements_file") && slices.ContainsFunc(c.list("requirements"), func(s string) bool {
					return strings.TrimSpace(s) != s || s == "" || strings.HasPrefix(s, "#") || strings.Contains(s, " #")
				})
			},
		},
		{
			Section: inDockerfile, Rule: "A command with a line break becomes several Dockerfile instructions, a blank one a RUN without a command.",
			Verdict: better, Reason: "A command is one RUN with all of its lines, and blank commands are left out.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "dockerfile.steps", "dockerfile.syntax") && slices.ContainsFunc(c.list("commands"), func(s string) bool {
					return strings.Contains(s, "\n") || strings.TrimSpace(s) == ""
				})
			},
		},
		{
			Section: inDockerfile, Rule: "The source is put in before the commands, always.",
			Verdict: better, Reason: "It comes last when no command and no requirement can depend on it, so that new code leaves their layers as they are. " +
				"Only plain calls of package managers and file housekeeping count as independent; options.layer_order decides otherwise.",
			Covers: field("dockerfile.order"),
		},
		{
			Section: inDockerfile, Rule: "pip's CA certificate is copied into the image, from a path that does not exist when the context is an address.",
			Verdict: better, Reason: "It is mounted while commands run, together with PIP_CERT, and leaves nothing behind.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "dockerfile.pip_ca") && strings.HasSuffix(d.Got, "true") && strings.HasSuffix(d.Want, "true")
			},
		},
	}
}
