package function

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder/dockerfile"
)

const scratch = "scratch"

// errNoRegistry is about an image that stands for a place in the registry.
var errNoRegistry = errors.New("needs the configured registry, and none is configured; name a full image such as registry.example.com/team/name:tag")

// image is a parsed reference.
type image struct {
	// ref is the reference as it was written, without a leading dot.
	ref string
	// full has registry, repository and tag or digest.
	full string
	// path is the repository without the registry; tag is empty when none is written.
	path, tag string
	// local says that neither a registry nor a namespace is written ("python:3.12").
	local bool
	// digest says that the reference has one.
	digest bool
}

// parseImage parses text. A leading dot stands for the registry and its repository,
// where a repository that is written out is not put in front once more.
func parseImage(registry, text string) (image, error) {
	ref := text
	if rest, ok := strings.CutPrefix(text, "."); ok {
		if registry == "" {
			return image{}, fmt.Errorf("%q %w", text, errNoRegistry)
		}
		host, repository := splitRegistry(registry)
		if repository != "" && strings.HasPrefix(rest, repository+"/") {
			repository = ""
		}
		ref = joinPath(host, repository, rest)
	}
	if err := dockerfile.CheckBase(ref); err != nil {
		return image{}, err
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return image{}, fmt.Errorf("%q is not an image reference: %w", text, err)
	}
	tagged, _, pinned := strings.Cut(ref, "@")
	tag := ""
	if colon := strings.LastIndex(tagged, ":"); colon > strings.LastIndex(tagged, "/") {
		tag = tagged[colon+1:]
	}
	return image{
		ref:    ref,
		full:   parsed.Name(),
		path:   parsed.Context().RepositoryStr(),
		tag:    tag,
		local:  !strings.Contains(ref, "/"),
		digest: pinned,
	}, nil
}

// hasMLRun reports whether the image is one of those that come with mlrun, at any
// registry and below any path.
func (i image) hasMLRun() bool {
	parts := strings.Split(i.path, "/")
	n := len(parts)
	return n >= 2 && parts[n-2] == "mlrun" &&
		slices.Contains([]string{"mlrun", "mlrun-gpu", "ml-base", "mlrun-kfp"}, parts[n-1])
}

// fromMLRun reports whether the image is in a repository of MLRun's, which is the
// test of MLRun's client for the default of with_mlrun.
func (i image) fromMLRun() bool {
	parts := strings.Split(i.path, "/")
	return slices.Contains(parts[:len(parts)-1], "mlrun")
}

// splitRegistry cuts a configured registry into host and repository, of which
// either may be empty.
func splitRegistry(registry string) (host, repository string) {
	registry = strings.TrimRight(registry, "/")
	first, rest, _ := strings.Cut(registry, "/")
	if first == "localhost" || strings.ContainsAny(first, ".:") {
		return first, rest
	}
	return "", registry
}

func joinPath(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// target returns the image to make as a full reference, and as the user named it.
func (r resolver) target() (full, user string) {
	const path = "spec.build.image"
	text := r.fn.target
	if text == "" {
		host, repository := splitRegistry(r.config.Registry)
		if r.config.Registry == "" {
			r.faults.add(path, "is not set, and no registry is configured; name a full image such as registry.example.com/team/name:tag")
			return "", ""
		}
		if repository == "" {
			repository = defaultRepository
		}
		text = joinPath(host, repository, expandTemplate(r.config.TargetNameTemplate, r.fn.project, r.fn.name)) + ":" + r.fn.tag
	}
	bare := text
	for _, scheme := range []string{"https://", "http://"} {
		if cut, ok := strings.CutPrefix(bare, scheme); ok {
			r.notes.add("%s of %s is no part of an image's name and was left out", scheme, path)
			bare = cut
		}
	}
	r.checkPrefix(path, bare)
	img, err := parseImage(r.config.Registry, bare)
	switch {
	case err != nil && r.fn.target == "" && (r.fn.name == "" || r.fn.project == ""):
		// The fault of the name is noted already.
	case err != nil:
		r.faults.check(path, err)
	case img.digest:
		r.faults.add(path, "%q has a digest, which is known only after a build; name a tag", text)
	case img.local:
		r.notes.add("%s %s names no registry, so that it is one of Docker Hub's own; .%s is the one of the configured registry", path, bare, bare)
	}
	if r.fn.target == "" {
		text = img.full
	}
	return img.full, text
}

// checkPrefix holds targets below the configured registry and repository to the
// prefix of the function, so that functions cannot overwrite each other's images.
func (r resolver) checkPrefix(path, text string) {
	if r.fn.target == "" || r.config.Registry == "" {
		return
	}
	host, repository := splitRegistry(r.config.Registry)
	setDefault(&repository, defaultRepository)
	prefix := expandTemplate(r.config.TargetNameTemplate, r.fn.project, r.fn.name)
	for _, place := range []string{"." + repository + "/", joinPath(host, repository) + "/"} {
		if rest, ok := strings.CutPrefix(text, place); ok && !strings.HasPrefix(rest, prefix) {
			r.faults.add(path, "%q is below %s, where the image of this function must begin with %s; take another name or another place", text, place, prefix)
			return
		}
	}
}

// registrySecret returns the credentials of the build: the function's, else the
// configured ones for a target at the configured registry.
func (r resolver) registrySecret(target string) string {
	if r.fn.secret != "" || r.config.RegistrySecret == "" || r.config.Registry == "" || target == "" {
		return r.fn.secret
	}
	host, _ := splitRegistry(r.config.Registry)
	setDefault(&host, name.DefaultRegistry)
	configured, err := name.NewRegistry(host)
	ref, refErr := name.ParseReference(target)
	if err != nil || refErr != nil || ref.Context().RegistryStr() != configured.RegistryStr() {
		return ""
	}
	return r.config.RegistrySecret
}
