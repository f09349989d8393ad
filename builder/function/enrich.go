package function

import (
	"fmt"
	"regexp"
	"strings"

	"kiln/builder/lazyregexp"
)

var (
	// twoPythons are the versions of MLRun whose images exist for Python 3.7 and 3.9:
	// 1.3, 1.4 and what is built between versions.
	twoPythons = lazyregexp.New(`^1\.[34]\.|^0\.0\.0[+-]|unstable`)
	python37   = lazyregexp.New(`^3\.7(?:\D|$)`)
)

// enrich completes an image as MLRun's server does: MLRun's own images get a tag, and
// images that the configuration names a registry in front. What it does to others,
// and the leading dot, is parseImage's.
func (r resolver) enrich(path, text string) (image, error) {
	img, err := parseImage(r.config.Registry, text)
	if err != nil {
		return image{}, err
	}
	if img.fromMLRun() && img.tag == "" && !img.digest {
		if tag := r.imagesTag(); tag != "" {
			text += ":" + tag
		} else {
			r.notes.add("%s %s has no tag and no version of MLRun is known, so that it stands for latest; set mlrun.server_version or options.client_version", path, text)
		}
	}
	prefix := r.config.VendorImagesRegistry
	if img.fromMLRun() {
		prefix = r.config.ImagesRegistry
	}
	if prefix != "" && r.enriches(text) {
		text = strings.TrimRight(prefix, "/") + "/" + text
	}
	return parseImage(r.config.Registry, text)
}

// enriches reports whether the configuration puts a registry in front of an image.
func (r resolver) enriches(text string) bool {
	for _, pattern := range r.config.ImagesToEnrich {
		if at, err := regexp.Compile(`^(?:` + pattern + `)`); err == nil && at.MatchString(text) {
			return true
		}
	}
	return false
}

// imagesTag returns the tag of MLRun's images, or "" when it is not known.
func (r resolver) imagesTag() string {
	version := r.config.ImagesTag
	setDefault(&version, r.mlrunVersion())
	tag := imageVersion(version)
	if python37.MatchString(strings.TrimSpace(r.in.ClientPythonVersion)) && twoPythons.MatchString(version) {
		tag += "-py37"
	}
	return tag
}

// mlrunVersion returns the version of the client, else that of the server, or "".
func (r resolver) mlrunVersion() string {
	version := strings.TrimSpace(r.in.ClientVersion)
	setDefault(&version, r.config.MLRunVersion)
	return version
}

// imageVersion is MLRun's conversion of a version of the package to one of an image:
// 0.0.0+unstable is unstable.
func imageVersion(version string) string {
	return strings.ReplaceAll(strings.ReplaceAll(version, "+", "-"), "0.0.0-", "")
}

// defaultSpecifier returns the requirement for mlrun of that version; "" is any.
func (r resolver) defaultSpecifier(version string) string {
	switch version {
	case "":
		return r.config.MLRunPackage + "[complete]"
	case "unstable", "0.0.0+unstable":
		return r.config.MLRunPackage + "[complete] @ git+https://github.com/mlrun/mlrun@development"
	default:
		return fmt.Sprintf("%s[complete]==%s", r.config.MLRunPackage, version)
	}
}

// checkVersions checks what the request says about its client.
func (r resolver) checkVersions() {
	for _, v := range []struct{ path, text string }{
		{"options.client_version", strings.TrimSpace(r.in.ClientVersion)},
		{"options.client_python_version", strings.TrimSpace(r.in.ClientPythonVersion)},
	} {
		if v.text != "" && !versionPattern.MatchString(v.text) {
			r.faults.add(v.path, "%.80q is not a version such as 1.7.0", v.text)
		}
	}
}

// notes are sentences about a build that people should read.
type notes struct{ list []string }

func (n *notes) add(format string, args ...any) {
	n.list = append(n.list, fmt.Sprintf(format, args...))
}

// String returns the notes behind a reason.
func (n *notes) String() string {
	var b strings.Builder
	for _, note := range n.list {
		b.WriteString(" Note: " + note + ".")
	}
	return b.String()
}
