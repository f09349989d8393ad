package function

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"kiln/builder"
	"kiln/builder/dockerfile"
)

// builtKinds are the kinds of MLRun whose images its own builder makes.
const builtKinds = "job, mpijob, dask, spark, remote-spark, databricks and application"

// class says who builds the image of a kind.
type class int

const (
	classUnknown class = iota
	classBuilt
	classNuclio
	classLocal
)

// spec is what is read from a function object: texts trimmed, lists cleaned.
type spec struct {
	// readable is false when there is no object to read.
	readable           bool
	kind               string
	project, name, tag string
	// image is spec.image, base and target are spec.build.base_image and .image.
	image, base, target string
	// projectImage is the default of the project.
	projectImage string
	commands     []string
	requirements []string
	extra        string
	extraArgs    string
	// code is inline code in base64.
	code       string
	env        map[string]string
	withMLRun  *bool
	source     string
	loadOnRun  bool
	targetDir  string
	targetPath string
	secret     string
	verbose    bool
	scheduling builder.Scheduling
	// embedded says that a dask cluster runs in the process of its caller.
	embedded bool
}

func (s spec) class() class {
	switch s.kind {
	case "job", "mpijob", "dask", "spark", "remote-spark", "databricks", "application":
		return classBuilt
	case "nuclio", "remote", "serving":
		return classNuclio
	case "local", "handler":
		return classLocal
	default:
		return classUnknown
	}
}

func readFunction(raw json.RawMessage, f *faults) spec {
	root, ok := readObject("", raw, f)
	if !ok || root.keys == nil {
		f.add("function", "is not an object with kind, metadata and spec")
		return spec{}
	}
	fields := root.child("spec")
	build := fields.child("build")
	s := spec{
		readable:  true,
		kind:      root.text("kind"),
		image:     strings.TrimSpace(fields.text("image")),
		base:      strings.TrimSpace(build.text("base_image")),
		target:    strings.TrimSpace(build.text("image")),
		extra:     build.text("extra"),
		env:       build.textMap("builder_env"),
		withMLRun: build.flag("with_mlrun"),
	}
	s.readIdentity(root.child("metadata"), f)
	s.commands = readCommands(build)
	s.requirements = readRequirements(build)
	f.check(build.at("extra"), dockerfile.CheckExtra(s.extra))
	s.code = build.text("functionSourceCode")
	s.readSource(build, fields)
	s.extraArgs = build.text("extra_args")
	s.secret = strings.TrimSpace(build.text("secret"))
	f.check(build.at("secret"), checkObjectName(s.secret))
	s.verbose = isTrue(root.flag("verbose"))
	s.scheduling = readScheduling(fields)
	if remote := fields.flag("remote"); s.kind == "dask" && remote != nil {
		s.embedded = !*remote
	}
	return s
}

// readSource reads the source and its folder. spec.clone_target_dir is the name that
// the folder had before.
func (s *spec) readSource(build, fields object) {
	s.source = strings.TrimSpace(build.text("source"))
	s.loadOnRun = isTrue(build.flag("load_source_on_run"))
	s.targetDir, s.targetPath = strings.TrimSpace(build.text("source_code_target_dir")), build.at("source_code_target_dir")
	if old := strings.TrimSpace(fields.text("clone_target_dir")); s.targetDir == "" && old != "" {
		s.targetDir, s.targetPath = old, fields.at("clone_target_dir")
	}
}

func isTrue(flag *bool) bool { return flag != nil && *flag }

// readIdentity reads project, name and tag, and checks that they can be parts of an
// image reference.
func (s *spec) readIdentity(metadata object, f *faults) {
	s.project, s.tag = metadata.text("project"), metadata.text("tag")
	setDefault(&s.project, "default")
	setDefault(&s.tag, "latest")
	written := metadata.text("name")
	s.name = normalizeName(written)
	switch {
	case s.name == "":
		f.add(metadata.at("name"), "is not set")
	case !componentRule.MatchString(s.name):
		f.add(metadata.at("name"), "%.80q cannot be part of an image name: lower case letters and digits, with single . _ or - between", written)
	}
	if !componentRule.MatchString(s.project) {
		f.add(metadata.at("project"), "%.80q cannot be part of an image name: lower case letters and digits, with single . _ or - between", s.project)
	}
	if !tagPattern.MatchString(s.tag) {
		f.add(metadata.at("tag"), "%.80q is not an image tag: up to 128 letters, digits, _ . or -, not beginning with . or -", s.tag)
	}
}

// normalizeName is MLRun's rule for names of functions.
func normalizeName(written string) string {
	var b strings.Builder
	space := false
	for _, r := range written {
		switch {
		case unicode.IsSpace(r):
			if !space {
				b.WriteByte('-')
			}
		case r == '_':
			b.WriteByte('-')
		default:
			b.WriteRune(unicode.ToLower(r))
		}
		space = unicode.IsSpace(r)
	}
	return b.String()
}

// readCommands drops blank commands: they come out of templates, and MLRun turns
// them into a RUN without arguments, which no builder takes.
func readCommands(build object) []string {
	var commands []string
	for i, command := range build.texts("commands") {
		if strings.TrimSpace(command) == "" {
			continue
		}
		build.faults.check(fmt.Sprintf("%s[%d]", build.at("commands"), i), dockerfile.CheckCommand(command))
		commands = append(commands, command)
	}
	return commands
}

// readRequirements applies the rules of MLRun's with_requirements to each line of
// each entry: trimmed, comments and blank lines dropped. Line breaks are pip's.
func readRequirements(build object) []string {
	var requirements []string
	if raw := bytes.TrimSpace(build.keys["requirements"]); len(raw) > 0 && raw[0] == '"' {
		build.faults.add(build.at("requirements"), "must be a list of texts; a requirements file is read by the client, so list its lines")
		return nil
	}
	for i, entry := range build.texts("requirements") {
		for _, line := range dockerfile.SplitRequirement(entry) {
			line = cleanRequirement(line)
			if line == "" {
				continue
			}
			build.faults.check(fmt.Sprintf("%s[%d]", build.at("requirements"), i), dockerfile.CheckRequirement(line))
			requirements = append(requirements, line)
		}
	}
	return requirements
}

func cleanRequirement(line string) string {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return ""
	}
	line, _, _ = strings.Cut(line, " #")
	return strings.TrimSpace(line)
}

// checkCode reports why inline code, which is not part of the image, cannot be read.
func checkCode(text string) error {
	code := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text)
	if _, err := base64.StdEncoding.DecodeString(code); err != nil {
		return fmt.Errorf("is not valid base64: %w", err)
	}
	return nil
}
