package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"kiln/builder"
)

// maxString is how long one argument or variable can be, its name and the end included:
// a constant of Linux (MAX_ARG_STRLEN).
const maxString = 128 << 10

// maxTotal bounds arguments and environment together; Linux takes 2 MiB with the
// default stack, and the image's own environment comes on top.
const maxTotal = 1 << 20

var (
	runIDPattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	imagePattern   = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
	handlerPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*((\.|::)[A-Za-z_][A-Za-z0-9_]*)*$`)
	modePattern    = regexp.MustCompile(`^[a-z]{1,20}$`)
	varPattern     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// Resolve applies MLRun's rules for what a run's process is. It is pure: the same input
// gives the same plan. Plan.Source is not pinned: whoever runs the plan sets its Version
// by builder.Sources.Pin of Source.URL with Plan.SourceEnv.
//
// The error is a *builder.Error of KindInvalidRequest that joins all faults, one line
// each, and every line names the JSON path inside the function object or the field of
// the run it is about.
func Resolve(in Input) (Plan, error) {
	r := resolver{in: in, fn: readFunction(in.Function)}
	r.faults = r.fn.faults
	r.params = r.parameters()
	plan := r.plan()
	r.checkSizes(plan)
	if err := errors.Join(r.faults...); err != nil {
		return Plan{}, &builder.Error{Kind: builder.KindInvalidRequest, Op: "checking the run", Err: err}
	}
	return plan, nil
}

// resolver holds the parts of one Resolve.
type resolver struct {
	in Input
	fn function
	// params are the valid parameters.
	params map[string]json.RawMessage
	faults []error
}

func (r *resolver) add(path, format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

func (r *resolver) plan() Plan {
	r.checkIdentity()
	p := Plan{
		RunID: r.in.RunID, Attempt: r.in.Attempt, Image: r.in.Image, RegistrySecret: r.fn.Spec.Build.Secret,
		Project: r.project(), Function: r.fn.name(), Name: r.name(), Labels: maps.Clone(r.in.Run.Labels),
		Scheduling: r.fn.Spec.scheduling(),
	}
	p.Limits, p.GPUs = r.limits()
	p.Source, p.Workdir = r.places()
	if p.Source != nil {
		p.SourceEnv = r.sourceEnv()
	}
	r.commands(&p)
	p.Env = r.env()
	p.Secrets = r.secrets(p.Env)
	return p
}

func (r *resolver) checkIdentity() {
	if !slices.Contains([]string{"", "job", "local", "handler", "remote-spark", "databricks"}, r.fn.Kind) {
		r.add("kind", "%.80q is not run as one process; job, local, handler, remote-spark and databricks are", r.fn.Kind)
	}
	if !runIDPattern.MatchString(r.in.RunID) {
		r.add("run_id", "%.80q is not 64 hex digits", r.in.RunID)
	}
	if r.in.Attempt < 1 {
		r.add("attempt", "%d is not more than zero", r.in.Attempt)
	}
	if !imagePattern.MatchString(r.in.Image) {
		r.add("image", "%.200q names no digest", r.in.Image)
	}
	if name := r.name(); !namePattern.MatchString(name) {
		r.add("run.name", "%.80q is not letters, digits, ., _ and -, at most 253, beginning and ending with a letter or digit", name)
	}
	if project := r.project(); !namePattern.MatchString(project) {
		r.add("run.project", "%.80q is not letters, digits, ., _ and -, beginning and ending with a letter or digit", project)
	}
	if h := r.handler(); h != "" && !handlerPattern.MatchString(h) {
		r.add("run.handler", "%.80q is not of the form function, module.function or Class::method", h)
	}
	if m := r.fn.Spec.Mode; m != "" && !modePattern.MatchString(m) {
		r.add("spec.mode", "%.80q is not one of MLRun's modes", m)
	}
}

func (r *resolver) project() string {
	return first(r.in.Run.Project, r.fn.Metadata.Project, "default")
}

// name is MLRun's rule: the function's name, with the handler's.
func (r *resolver) name() string {
	if r.in.Run.Name != "" {
		return r.in.Run.Name
	}
	name := r.fn.name()
	if h := r.handler(); h != "" && handlerPattern.MatchString(h) {
		name += "-" + strings.NewReplacer("::", "-", ".", "-", "_", "-").Replace(h)
	}
	return strings.Trim(name, "-")
}

func (r *resolver) handler() string { return first(r.in.Run.Handler, r.fn.Spec.DefaultHandler) }

func (r *resolver) args() []string {
	if r.in.Run.Args != nil {
		return slices.Clone(r.in.Run.Args)
	}
	return slices.Clone(r.fn.Spec.Args)
}

// checkSizes reports what no kernel would start.
func (r *resolver) checkSizes(p Plan) {
	total := 0
	check := func(path, text string) {
		total += len(text) + 1
		switch {
		case strings.ContainsRune(text, 0):
			r.add(path, "holds a NUL character")
		case len(text) >= maxString:
			r.add(path, "is longer than the %d KiB that an argument or variable can have", maxString>>10)
		}
	}
	vars := func(path string, all []Var) {
		for _, v := range all {
			check(path+" "+v.Name, v.Name+"="+v.Value)
		}
	}
	vars("env", p.Env)
	vars("secret", p.Secrets)
	base, most := total, 0
	for _, c := range p.Commands {
		total = base
		for _, arg := range c.Args {
			check("args", arg)
		}
		vars("env", c.Env)
		most = max(most, total)
	}
	if most > maxTotal {
		r.add("run", "arguments and environment take %d KiB, more than %d", most>>10, maxTotal>>10)
	}
}

// first returns the first text that is not empty.
func first(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
