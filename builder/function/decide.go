package function

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/dockerfile"
)

var (
	// secretName finds names whose values must not be shown. Short words have to
	// be a part of the name, or end one.
	secretName = regexp.MustCompile(`TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE|KEYS?(?:_|$)|(?:^|_)(?:PASS|PWD|AUTH|PAT)(?:_|$)`)
	// urlPassword finds a password inside an address.
	urlPassword = regexp.MustCompile(`://[^/\s@]*:[^/\s@]+@`)
)

// baseImage is an image and what named it, for reasons.
type baseImage struct {
	image
	// text is the image as it was written, from says where.
	text, from string
}

// String names the image and where it was written.
func (b baseImage) String() string { return b.from + " " + b.text }

// base returns the image to start from: base_image, image, for Spark the one that is
// configured for it, the image of the kind, the default. Spark functions have no use
// for the default, which lacks Spark, and the project's image none for that of the kind.
func (r resolver) base() baseImage {
	candidates := []baseImage{
		{from: "spec.build.base_image", text: r.fn.base},
		{from: "spec.image", text: r.fn.image},
		r.sparkImage(),
	}
	if r.fn.name != ProjectImageBuilder {
		candidates = append(candidates, r.kindImage())
	}
	if !r.fn.isSpark() {
		candidates = append(candidates, baseImage{from: "the default base image", text: r.config.DefaultBaseImage})
	}
	return r.firstImage(candidates...)
}

func (r resolver) kindImage() baseImage {
	return baseImage{from: "the default image of kind " + r.fn.kind, text: r.config.ImageByKind[r.fn.kind]}
}

// firstImage parses the first candidate that is written, if any.
func (r resolver) firstImage(candidates ...baseImage) baseImage {
	for _, c := range candidates {
		if c.text == "" {
			continue
		}
		if c.text == scratch {
			c.ref = scratch
			return c
		}
		var err error
		if c.image, err = parseImage(r.config.Registry, c.text); err != nil {
			r.faults.check(c.from, err)
		}
		return c
	}
	return baseImage{}
}

// notNeeded returns the decision of a function that needs no build.
func (r resolver) notNeeded(add additions) (builder.Decision, bool) {
	if d, ok := r.deployed(); ok {
		return d, true
	}
	if r.in.ForceBuild || !add.empty() || r.fn.name == ProjectImageBuilder {
		return builder.Decision{}, false
	}
	img := r.firstImage(
		baseImage{from: "spec.image", text: r.fn.image},
		baseImage{from: "spec.build.base_image", text: r.fn.base},
		r.sparkImage(),
		r.kindImage(),
	)
	if img.text == "" {
		r.faults.add("spec.image", "is not set, kind %s has no default image, and there is nothing to build: "+
			"set spec.image, or spec.build with commands, requirements or extra", r.fn.kind)
	}
	return builder.Decision{
		Image: img.ref,
		Reason: fmt.Sprintf("No build is needed: %s is used as it is, since the function adds no commands, requirements or extra.",
			img),
	}, true
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
	if add.extra != "" {
		parts = append(parts, "extra Dockerfile text")
	}
	if add.mlrun {
		parts = append(parts, "mlrun ("+r.whyMLRun()+")")
	}
	if len(parts) == 0 && !r.in.ForceBuild {
		return projectImageReason(base)
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
	case r.fn.kind == KindSpark:
		return "the default for kind spark, with_mlrun: false leaves it out"
	default:
		return "the default for a base image without it, with_mlrun: false leaves it out"
	}
}

// local decides about a kind that runs in the environment of its caller.
func (r resolver) local() builder.Decision {
	img := r.firstImage(baseImage{from: "spec.image", text: r.fn.image})
	if img.text == "" {
		r.faults.add("kind", "functions of kind %s run where they are called, and no image is built for them; "+
			"set spec.image to have one reported", r.fn.kind)
	}
	reason := fmt.Sprintf("No build is needed: functions of kind %s run where they are called; %s is left as it is.", r.fn.kind, img)
	if work := append(r.work(), r.fn.unsupported...); len(work) > 0 {
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
	if r.in.ForceBuild {
		work = append(work, "force_build")
	}
	return work
}

func (r resolver) refuse(paths []string) {
	for _, path := range paths {
		r.faults.add(path, "is not supported yet; take it out, since the build would not follow it")
	}
}

// buildArgs merges builder_env of the function and of the request, in order of
// names.
func (r resolver) buildArgs() []builder.Arg {
	env := maps.Clone(r.fn.env)
	paths := make(map[string]string, len(env)+len(r.in.BuilderEnv))
	for name := range env {
		paths[name] = "spec.build.builder_env"
	}
	if env == nil {
		env = make(map[string]string, len(r.in.BuilderEnv))
	}
	for name, value := range r.in.BuilderEnv {
		env[name], paths[name] = value, "builder_env"
	}
	args := make([]builder.Arg, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value := env[name]
		if err := dockerfile.CheckName(name); err != nil {
			r.faults.check(fmt.Sprintf("%s[%.80q]", paths[name], name), err)
		} else if strings.Contains(value, "\x00") {
			r.faults.add(paths[name]+"."+name, "holds a NUL byte")
		}
		secret := secretName.MatchString(strings.ToUpper(name)) || urlPassword.MatchString(value)
		args = append(args, builder.Arg{Name: name, Value: value, Secret: secret})
	}
	return args
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
