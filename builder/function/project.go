package function

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"kiln/builder/dockerfile"
)

// Project holds what the functions of a project take where they name nothing
// themselves. Keys are those of MLRun's project spec. The zero value changes nothing,
// but makes the project known: a function's source "." is then the project's, or none.
type Project struct {
	// DefaultImage is the image of functions without one. It is no sign that a function
	// is deployed.
	DefaultImage string `json:"default_image,omitempty"`
	// DefaultRequirements are added to those of every function.
	DefaultRequirements []string `json:"default_requirements,omitempty"`
	// Source is what a function's source "." stands for, with LoadSourceOnRun and
	// SourceTargetDir.
	Source          string `json:"source,omitempty"`
	LoadSourceOnRun bool   `json:"load_source_on_run,omitempty"`
	SourceTargetDir string `json:"source_code_target_dir,omitempty"`
	// MountDir is where the source is mounted when functions run. Set, the source "."
	// goes into no image.
	MountDir string `json:"mountdir,omitempty"`
	// NodeSelector is put on top of the configured one, and the function's on top of it.
	NodeSelector map[string]string `json:"default_function_node_selector,omitempty"`
	// ServiceAccount is that of functions that name none.
	ServiceAccount string `json:"default_service_account,omitempty"`
	// ServiceAccounts are those that functions may name. Empty: any.
	ServiceAccounts []string `json:"allowed_service_accounts,omitempty"`
}

func (p Project) check(registry string) error {
	var faults []error
	note := func(key string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", key, err))
		}
	}
	if p.DefaultImage != "" {
		note("default_image", checkConfiguredImage(registry, p.DefaultImage))
	}
	for i, line := range p.DefaultRequirements {
		note(fmt.Sprintf("default_requirements[%d]", i), checkProjectRequirement(line))
	}
	if p.Source != "" {
		note("source", checkSource(p.Source))
		if !p.LoadSourceOnRun {
			note("source", checkFetched(p.Source))
		}
	}
	if p.SourceTargetDir != "" {
		note("source_code_target_dir", dockerfile.CheckTarget(targetDir(p.SourceTargetDir)))
	}
	note("default_service_account", checkObjectName(p.ServiceAccount))
	for i, name := range p.ServiceAccounts {
		note(fmt.Sprintf("allowed_service_accounts[%d]", i), checkObjectName(name))
	}
	return errors.Join(faults...)
}

func checkProjectRequirement(line string) error {
	if strings.TrimSpace(line) == "" || cleanRequirement(line) == "" {
		return nil
	}
	return dockerfile.CheckRequirement(cleanRequirement(line))
}

// enrich puts the project's defaults into s, as MLRun's server does before it looks
// at a function. known says that there are any.
func (s *spec) enrich(p Project, known bool) {
	s.projectImage = p.DefaultImage
	for _, line := range p.DefaultRequirements {
		if line = cleanRequirement(line); line != "" && !slices.Contains(s.requirements, line) {
			s.requirements = append(s.requirements, line)
		}
	}
	if !known || !isProjectSource(s.source) {
		return
	}
	s.source, s.loadOnRun, s.targetDir = p.Source, p.LoadSourceOnRun, p.SourceTargetDir
	if p.MountDir != "" {
		s.source = ""
	}
}
