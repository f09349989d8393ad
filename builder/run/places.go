package run

import (
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"kiln/builder"
	"kiln/builder/dockerfile"
	"kiln/builder/run/launcher"
)

// codeDir is where MLRun puts code that names no folder.
const codeDir = "/home/mlrun_code"

// places returns the code that is fetched when the run starts, and the folder that the
// process starts in; a relative one is below that of the code.
func (r *resolver) places() (*builder.Source, string) {
	b := r.fn.Spec.Build
	target := ""
	if b.Source != "" {
		dir, field := b.TargetDir, "spec.build.source_code_target_dir"
		if dir == "" {
			dir, field = r.fn.Spec.CloneTargetDir, "spec.clone_target_dir"
		}
		target = targetDir(dir)
		if err := dockerfile.CheckTarget(target); err != nil {
			r.add(field, "%s", err)
		}
		target = path.Clean(target)
	}
	return r.source(target), r.workdir(target)
}

// targetDir is MLRun's rule: a relative folder is below codeDir.
func targetDir(dir string) string {
	if path.IsAbs(dir) {
		return dir
	}
	return path.Join(codeDir, dir)
}

// source is nil unless the function loads it when it runs. MLRun leaves that to the
// process; here it is there before the process starts.
func (r *resolver) source(target string) *builder.Source {
	b := r.fn.Spec.Build
	if b.Source == "" || !b.LoadSourceOnRun || r.fn.Kind == "application" {
		return nil
	}
	const field = "spec.build.source"
	switch {
	case r.fn.code != nil:
		r.add(field, "a function has either inline code or a source that is loaded when it runs")
	case strings.ContainsFunc(b.Source, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }):
		r.add(field, "holds white space or control characters")
	case !strings.Contains(b.Source, ":"):
		r.add(field, "%.80q is a path, and no runner has the file; name an address", b.Source)
	}
	if reserved(target) {
		r.add("spec.build.source_code_target_dir", "%q is a folder of the system", target)
	}
	return &builder.Source{URL: b.Source, Target: target}
}

// reserved reports whether nothing may be mounted at a folder.
func reserved(dir string) bool {
	for _, own := range []string{launcher.Dir, "/proc", "/sys", "/dev"} {
		if dir == "/" || dir == own || strings.HasPrefix(dir, own+"/") || strings.HasPrefix(own, dir+"/") {
			return true
		}
	}
	return false
}

func (r *resolver) workdir(target string) string {
	dir, field := r.in.Run.Workdir, "run.workdir"
	if dir == "" {
		dir, field = r.fn.Spec.Workdir, "spec.workdir"
	}
	switch {
	case strings.ContainsFunc(dir, unicode.IsControl):
		r.add(field, "holds control characters")
	case path.IsAbs(dir):
		return path.Clean(dir)
	case target == "" && path.Clean(dir) == ".":
		return ""
	case target == "":
		r.add(field, "%.80q is relative, and the function has no source that it could be a folder of", dir)
	case dir != "" && !filepath.IsLocal(dir):
		r.add(field, "%.80q leads out of the source's folder", dir)
	}
	return path.Join(target, dir)
}
