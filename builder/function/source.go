package function

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"kiln/builder"
	"kiln/builder/dockerfile"
	"kiln/builder/lazyregexp"
)

const (
	sourcePath = "spec.build.source"
	// codeDir is where MLRun puts code that names no folder.
	codeDir = "/home/mlrun_code"
	// maxSource is the longest text that is taken for a source, in bytes.
	maxSource = 4096
)

var (
	sourceScheme = lazyregexp.New(`^([A-Za-z][A-Za-z0-9+.-]*)://`)
	// scpSource is git's short form of an ssh address.
	scpSource     = lazyregexp.New(`^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^\s:]+$`)
	contextSource = lazyregexp.New(`^context://sha256-[0-9a-f]{64}\.(?:tar\.gz|tar|zip)$`)
)

// isProjectSource reports whether source stands for the project's.
func isProjectSource(source string) bool { return source == "." || source == "./" }

// targetDir is MLRun's rule for the folder of the source: a relative one is below
// /home/mlrun_code, an absolute one is taken as it is.
func targetDir(dir string) string {
	if path.IsAbs(dir) {
		return dir
	}
	for strings.HasPrefix(dir, "./") {
		dir = strings.TrimLeft(strings.TrimPrefix(dir, "./"), "/")
	}
	if dir == "." {
		dir = ""
	}
	return codeDir + "/" + dir
}

// checkSource reports why text cannot be a source, by MLRun's rule and what Kiln takes
// in addition: git over other transports, and contexts that were uploaded.
func checkSource(text string) error {
	scheme := schemeOf(text)
	switch err := checkSourceText(text); {
	case err != nil:
		return err
	case scheme == "context" && !contextSource.MatchString(text):
		return fmt.Errorf("%.80q is not context://sha256-<64 hex digits> with .tar.gz, .tar or .zip", text)
	case isGit(text) || isProjectSource(text) || scheme == "store" || hasSuffix(text):
		return nil
	default:
		return errors.New("must be a compressed (tar.gz / zip) file, a git repository (git://…, git+https://…, https://….git), " +
			"a file path or in the project's context (.)")
	}
}

// checkFetched reports why a source cannot be put into an image.
func checkFetched(text string) error {
	switch scheme := schemeOf(text); {
	case scheme == "store":
		return errors.New("store:// names an artifact of MLRun, which Kiln does not know; name the archive or repository that it stands for")
	case isProjectSource(text):
		return fmt.Errorf("%q stands for the project's source, and the project has no defaults in the configuration; "+
			"name the archive or repository, or let `kiln build` upload a local folder", text)
	case scheme == "" && !isGit(text):
		return fmt.Errorf("%.80q is a path, and no worker has the file; name an address, or let `kiln build` upload a local folder", text)
	default:
		return nil
	}
}

// schemeOf returns the scheme of an address in lower case, or "".
func schemeOf(text string) string {
	if m := sourceScheme.FindStringSubmatch(text); m != nil {
		return strings.ToLower(m[1])
	}
	return ""
}

// isGit reports whether a source is a git repository by its form alone.
func isGit(text string) bool {
	scheme := schemeOf(text)
	return scheme == "git" || scheme == "ssh" || strings.HasPrefix(scheme, "git+") || scheme == "" && scpSource.MatchString(text)
}

func checkSourceText(text string) error {
	switch {
	case len(text) > maxSource:
		return fmt.Errorf("is longer than %d bytes", maxSource)
	case !utf8.ValidString(text):
		return errors.New("is not valid UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return errors.New("holds white space or control characters; write %20 for a space")
	default:
		return nil
	}
}

// hasSuffix is MLRun's test of a source: its last part has a file suffix. Of an
// address it may also be the last part of the path, before a query.
func hasSuffix(text string) bool {
	suffixed := func(p string) bool {
		name := path.Base(p)
		dot := strings.LastIndexByte(name, '.')
		return dot > 0 && dot < len(name)-1
	}
	if suffixed(text) {
		return true
	}
	u, err := url.Parse(text)
	return err == nil && u.Scheme != "" && suffixed(u.Path)
}

// source returns the code that goes into the image, without its place among the
// layers, or nil: there is none, or it is loaded when the function runs.
func (r resolver) source() *builder.Source {
	if r.fn.source == "" {
		return nil
	}
	r.faults.check(sourcePath, checkSource(r.fn.source))
	if r.fn.loadOnRun && r.fn.kind != "application" {
		if r.fn.kind == "spark" {
			r.faults.add("spec.build.load_source_on_run", "a function of kind spark cannot load its source when it runs; set it to false")
		}
		return nil
	}
	dir := targetDir(r.fn.targetDir)
	r.faults.check(r.fn.targetPath, dockerfile.CheckTarget(dir))
	return &builder.Source{URL: r.fn.source, Target: dir, Owner: r.config.SourceOwner}
}
