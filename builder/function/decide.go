package function

import (
	"fmt"
	"strings"

	"kiln/builder"
	"kiln/builder/dockerfile"
)

// baseImage is an image and what named it, for reasons.
type baseImage struct {
	image
	// text is the image as it was written, from says where.
	text, from string
}

// String names the image and where it was written.
func (b baseImage) String() string { return b.from + " " + b.text }

// base returns the image to start from, completed: base_image, image, the project's
// default, for Spark the one that is configured for it, the image of the kind, the
// default. Spark functions have no use for the default, which lacks Spark, and the
// image of a project none for the images of its functions, itself among them.
func (r resolver) base() baseImage {
	candidates := []baseImage{
		{from: "spec.build.base_image", text: r.fn.base},
		{from: "spec.image", text: r.fn.image},
	}
	if !r.makesProjectImage() {
		candidates = append(candidates, r.projectImage(), r.sparkImage(), r.kindImage())
	}
	if !r.fn.isSpark() {
		candidates = append(candidates, baseImage{from: "the default base image", text: r.config.DefaultBaseImage})
	}
	return r.firstImage(r.enrich, candidates...)
}

func (r resolver) projectImage() baseImage {
	return baseImage{from: "the default image of project " + r.fn.project, text: r.fn.projectImage}
}

func (r resolver) kindImage() baseImage {
	return baseImage{from: "the default image of kind " + r.fn.kind, text: r.config.ImageByKind[r.fn.kind]}
}

// asWritten parses an image without completing it.
func (r resolver) asWritten(_, text string) (image, error) {
	return parseImage(r.config.Registry, text)
}

// firstImage parses the first candidate that is written, if any.
func (r resolver) firstImage(parse func(path, text string) (image, error), candidates ...baseImage) baseImage {
	for _, c := range candidates {
		if c.text == "" {
			continue
		}
		if c.text == scratch {
			c.ref = scratch
			return c
		}
		var err error
		if c.image, err = parse(c.from, c.text); err != nil {
			r.faults.check(c.from, err)
		}
		return c
	}
	return baseImage{}
}

// runnable returns the image of a function that is not built.
func (r resolver) runnable() baseImage {
	return r.firstImage(
		r.asWritten,
		baseImage{from: "spec.image", text: r.fn.image},
		r.projectImage(),
		baseImage{from: "spec.build.base_image", text: r.fn.base},
		r.sparkImage(),
		r.kindImage(),
	)
}

// deployed says why MLRun takes a function for one that has its image, or "".
func (r resolver) deployed(add additions) string {
	bare := r.fn.source == "" && len(r.fn.commands) == 0 && add.extra == ""
	switch {
	case r.fn.image != "":
		return "the function has an image"
	case r.fn.isSpark() && bare:
		return "a function of kind " + r.fn.kind + " without source, commands and extra is always deployed"
	case r.fn.embedded:
		return "a dask function that is not remote is always deployed"
	default:
		return ""
	}
}

// notNeeded returns the decision of a function that needs no build.
func (r resolver) notNeeded(add additions) (builder.Decision, bool) {
	if why := r.deployed(add); r.in.SkipDeployed && why != "" {
		if img := r.runnable(); img.text != "" {
			return builder.Decision{
				Image:  img.ref,
				Reason: fmt.Sprintf("No build is needed: skip_deployed is set, and %s, %s.", why, img),
			}, true
		}
	}
	if r.in.ForceBuild || r.makesProjectImage() {
		return builder.Decision{}, false
	}
	if r.fn.kind == "application" && r.fn.image != "" && !add.empty() {
		img := r.runnable()
		return builder.Decision{
			Image:  img.ref,
			Reason: fmt.Sprintf("No build is needed: an application that has an image is built when it is forced only, and this one has %s.", img),
		}, true
	}
	if !add.empty() {
		return builder.Decision{}, false
	}
	img := r.runnable()
	if img.text == "" {
		r.faults.add("spec.image", "is not set, kind %s has no default image, and there is nothing to build: "+
			"set spec.image, or spec.build with commands, requirements, a source or extra", r.fn.kind)
	}
	return builder.Decision{Image: img.ref, Reason: fmt.Sprintf("No build is needed: %s is used as it is, since %s.", img, r.nothing())}, true
}

// nothing says that there is nothing to add.
func (r resolver) nothing() string {
	if r.fn.source != "" {
		return "the function adds no commands, requirements or extra, and loads its source when it runs"
	}
	return "the function adds no commands, requirements, source or extra"
}

// whyBuild returns the reason of a build.
func (r resolver) whyBuild(base baseImage, add additions) string {
	var parts []string
	if n := add.userCommands; n > 0 {
		parts = append(parts, plural(n, "command"))
	}
	if n := add.userRequirements; n > 0 {
		parts = append(parts, plural(n, "requirement"))
	}
	if add.source != nil {
		parts = append(parts, "its source")
	}
	if add.extra != "" {
		parts = append(parts, "extra Dockerfile text")
	}
	if add.mlrun {
		parts = append(parts, "mlrun ("+r.whyMLRun()+")")
	}
	if len(parts) == 0 && !r.in.ForceBuild {
		return fmt.Sprintf("A build is needed: the image of project %s is made of %s as it is.", r.fn.project, base)
	}
	if len(parts) == 0 {
		return fmt.Sprintf("A build is needed: force_build is set; the function adds nothing to %s.", base)
	}
	return fmt.Sprintf("A build is needed: the function adds %s to %s.", and(parts), base)
}

func (r resolver) whyMLRun() string {
	switch {
	case r.in.WithMLRun != nil:
		return "the request sets with_mlrun"
	case r.fn.withMLRun != nil:
		return "spec.build.with_mlrun is set"
	case r.config.WithMLRun == WithMLRunAlways:
		return "the configuration says always, with_mlrun: false leaves it out"
	case r.fn.kind == KindSpark:
		return "the default for kind spark, with_mlrun: false leaves it out"
	default:
		return "the default for a base image without it, with_mlrun: false leaves it out"
	}
}

// local decides about a kind that runs in the environment of its caller.
func (r resolver) local() builder.Decision {
	img := r.firstImage(r.asWritten, baseImage{from: "spec.image", text: r.fn.image})
	if img.text == "" {
		r.faults.add("kind", "functions of kind %s run where they are called, and no image is built for them; "+
			"set spec.image to have one reported", r.fn.kind)
	}
	reason := fmt.Sprintf("No build is needed: functions of kind %s run where they are called; %s is left as it is.", r.fn.kind, img)
	if work := r.work(); len(work) > 0 {
		reason += fmt.Sprintf(" Not used: %s.", and(work))
	}
	return builder.Decision{Image: img.ref, Reason: reason}
}

// work lists what the request asks a builder to do.
func (r resolver) work() []string {
	var work []string
	if len(r.fn.commands) > 0 {
		work = append(work, "spec.build.commands")
	}
	if len(r.fn.requirements) > 0 {
		work = append(work, "spec.build.requirements")
	}
	if strings.TrimSpace(r.fn.extra) != "" {
		work = append(work, "spec.build.extra")
	}
	if r.fn.source != "" && !r.fn.loadOnRun {
		work = append(work, "spec.build.source")
	}
	if strings.TrimSpace(r.fn.extraArgs) != "" {
		work = append(work, "spec.build.extra_args")
	}
	if r.in.ForceBuild {
		work = append(work, "force_build")
	}
	return work
}

// specifier returns the requirement for mlrun that the request asks for.
func (r resolver) specifier() string {
	specifier := strings.TrimSpace(r.in.MLRunVersionSpecifier)
	if specifier != "" {
		r.faults.check("mlrun_version_specifier", dockerfile.CheckRequirement(specifier))
	}
	return specifier
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func and(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
