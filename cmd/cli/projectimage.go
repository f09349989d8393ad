package cli

import (
	"errors"
	"fmt"

	"kiln/builder/function"
	"kiln/events"
)

// projectImageFlags make a request for the image of a project.
type projectImageFlags struct {
	ProjectImage bool     `env:"-" help:"Build the image that all functions of a project may share, of --file (a project), or of the flags below alone. An identical one is used again, unless --force or --no-cache is given."`
	Project      string   `env:"-" placeholder:"NAME" help:"Name of the project. Defaults to the file's."`
	Image        string   `env:"-" placeholder:"IMAGE" help:"Image of the project to make. Defaults to the project's default image, else .mlrun-project-image-NAME."`
	BaseImage    string   `env:"-" placeholder:"IMAGE" help:"Base of the project's image. Defaults to the file's, else the worker's default base."`
	Requirement  []string `env:"-" sep:"none" placeholder:"TEXT" help:"Requirement of the project's image; may be given again."`
	Command      []string `env:"-" sep:"none" placeholder:"TEXT" help:"Command of the project's image; may be given again."`
	ExtraArgs    string   `env:"-" placeholder:"TEXT" help:"Flags of the executor for the project's image."`
	TargetDir    string   `env:"-" placeholder:"DIR" help:"Where the project's source goes."`
}

// unused reports flags that mean something with --project-image only.
func (p projectImageFlags) unused() error {
	for flag, set := range map[string]bool{
		"project": p.Project != "", "image": p.Image != "", "base-image": p.BaseImage != "", "requirement": len(p.Requirement) > 0,
		"command": len(p.Command) > 0, "extra-args": p.ExtraArgs != "", "target-dir": p.TargetDir != "",
	} {
		if set {
			return fmt.Errorf("--%s belongs to --project-image", flag)
		}
	}
	return nil
}

// projectImage makes the request; raw is the project file, if there is one.
func (p projectImageFlags) projectImage(file string, raw []byte) (events.BuildRequest, error) {
	image := function.ProjectImage{
		Project: p.Project, Image: p.Image, BaseImage: p.BaseImage, Commands: p.Command, Requirements: p.Requirement,
		ExtraArgs: p.ExtraArgs, TargetDir: p.TargetDir,
	}
	if file != "" {
		doc, err := oneDocument(raw)
		if err != nil {
			return events.BuildRequest{}, fmt.Errorf("%s: %w", file, err)
		}
		image.Object = doc
	} else if p.Project == "" {
		return events.BuildRequest{}, errors.New("missing flag: --project=NAME, or --file=FILE with the project")
	}
	object, err := image.Function()
	if err != nil {
		return events.BuildRequest{}, err
	}
	return parseFunction(object)
}
