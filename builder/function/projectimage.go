package function

import (
	"encoding/json"
	"strings"

	"kiln/builder"
)

// ProjectImageBuilder is the function that the image of a project is built of. It is
// built even when it adds nothing to its base, so that the image exists.
const ProjectImageBuilder = "mlrun--project--image--builder"

// ProjectImage is the image that all functions of a project may share, as MLRun's
// project.build_image makes it.
type ProjectImage struct {
	// Object is the MLRun project object: metadata, spec. Empty: the project has only a
	// name. Its spec.build, source, default_requirements and default_image are taken.
	Object json.RawMessage
	// Project is the name; empty: the object's.
	Project string
	// Image is the target. Empty: the project's default image, else
	// .mlrun-project-image-<name>.
	Image string
	// BaseImage replaces the object's. Empty on both sides: the worker's default base.
	BaseImage string
	// Commands and Requirements are added to the object's.
	Commands, Requirements []string
	// ExtraArgs are flags of the executor, which replace the object's; TargetDir is where
	// the source goes.
	ExtraArgs, TargetDir string
}

// Function returns the function object. The project object is not changed. Errors are
// of KindInvalidRequest and join all faults.
func (p ProjectImage) Function() (json.RawMessage, error) {
	var f faults
	name, build := p.build(&f)
	if name == "" {
		f.add("project", "has no name")
	}
	if err := f.err(); err != nil {
		return nil, &builder.Error{Kind: builder.KindInvalidRequest, Op: "reading the project", Err: err}
	}
	return json.Marshal(map[string]any{
		"kind":     "job",
		"metadata": map[string]any{"name": ProjectImageBuilder, "project": name},
		"spec":     map[string]any{"build": build},
	})
}

// build returns the project's name and its spec.build with everything else put on top.
func (p ProjectImage) build(f *faults) (name string, build map[string]any) {
	root, ok := readObject("", p.Object, f)
	if !ok {
		f.add("project", "is not an object with metadata and spec")
	}
	fields := root.child("spec")
	given := fields.child("build")
	name = p.Project
	switch own := root.child("metadata").text("name"); {
	case name == "":
		name = own
	case own != "" && own != name:
		f.add("metadata.name", "is %.80q, not %.80q", own, name)
	}
	build = make(map[string]any, len(given.keys))
	for key, value := range given.keys {
		build[key] = value
	}
	list := func(key string, more ...[]string) {
		all := given.texts(key)
		for _, m := range more {
			all = append(all, m...)
		}
		if len(all) > 0 {
			build[key] = all
		}
	}
	list("commands", p.Commands)
	list("requirements", fields.texts("default_requirements"), p.Requirements)
	set := func(key string, values ...string) {
		for _, value := range values {
			if value != "" {
				build[key] = value
				return
			}
		}
	}
	set("image", p.Image, fields.text("default_image"), ".mlrun-project-image-"+strings.ToLower(name))
	set("base_image", p.BaseImage)
	set("extra_args", p.ExtraArgs)
	set("source_code_target_dir", p.TargetDir)
	// A source in the project's own folder is for who reads the folder to pack.
	if !fields.isSet("load_source_on_run") {
		set("source", fields.text("source"))
	}
	return name, build
}

func (r resolver) makesProjectImage() bool { return r.fn.name == ProjectImageBuilder }
