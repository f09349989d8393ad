package builder

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kiln/builder/dockerfile"
)

// Scratch is the empty base image; it is not looked up in a registry.
const Scratch = "scratch"

// Draft makes the plan of a request without any I/O. A base other than Scratch is
// not pinned then, so that the plan has no BuildID and no Destination yet. Errors
// are of KindInvalidRequest, apart from those of cfg.
func Draft(cfg Config, r Request) (Plan, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return Plan{}, fmt.Errorf("builder configuration: %w", err)
	}
	return newPlan(cfg, r, found{base: Image{Ref: r.Base}, source: r.Source})
}

// found is what was looked up for a request.
type found struct {
	base    Image
	source  *Source
	secrets map[string]string
}

// newPlan is the pure core: the same request, configuration and findings always give
// the same plan.
func newPlan(cfg Config, r Request, f found) (Plan, error) {
	base := f.base
	plan := Plan{
		Base: base, BuildArgs: slices.Clone(r.BuildArgs), Secrets: secretsFor(cfg, r, f.secrets), Source: f.source, Target: r.Target,
		RegistrySecret: r.RegistrySecret, Verbose: r.Verbose, Scheduling: r.Scheduling,
		RequestID: r.ID, Project: r.Project, Function: r.Name, Tag: r.Tag,
		Platform: cmp.Or(r.Platform, cfg.Platform), Executor: cfg.Executor, Limits: cfg.Limits,
	}
	plan.Executor.Flags = slices.Concat(cfg.Executor.Flags, r.Flags)
	plan.Limits.Timeout = cmp.Or(r.Timeout, cfg.Timeout)
	if err := checkRequest(plan, r); err != nil {
		return Plan{}, &Error{Kind: KindInvalidRequest, Op: "planning the build", Err: err}
	}
	spec := dockerfile.Spec{
		Base: pinned(base), Commands: r.Commands, Requirements: r.Requirements, Extra: r.Extra,
		PipCA: cfg.Pip.CA, Defaults: cfg.defaultArgs(r),
	}
	if s := plan.Source; s != nil {
		spec.Source = &dockerfile.Source{Dir: SourceDir, Target: s.Target, Owner: s.Owner, First: s.First}
	}
	for _, arg := range r.BuildArgs {
		spec.Args = append(spec.Args, arg.Name)
	}
	for _, secret := range plan.Secrets {
		spec.Secrets = append(spec.Secrets, secret.ID)
	}
	text, files, err := dockerfile.Render(spec)
	if err != nil {
		return Plan{}, &Error{Kind: KindInvalidRequest, Op: "rendering the Dockerfile", Err: err}
	}
	plan.Dockerfile = text
	for _, f := range files {
		plan.Context = append(plan.Context, File(f))
	}
	plan.identify()
	if plan.BuildID != "" {
		plan.Destination = repository(r.Target) + ":kiln-" + plan.BuildID
	}
	if spec.Base != base.Ref {
		// A digest tells people nothing. The comment is not part of the identity: two
		// names of the same image make the same build.
		plan.Dockerfile = "# " + base.Ref + "\n" + text
	}
	return plan, nil
}

func checkRequest(p Plan, r Request) error {
	faults := []error{checkPlatform(p.Platform)}
	if r.Timeout < 0 {
		faults = append(faults, fmt.Errorf("timeout %s is negative", r.Timeout))
	}
	if repository(r.Target) == "" {
		faults = append(faults, errors.New("there is no target image"))
	}
	if err := dockerfile.CheckBase(r.Base); err != nil {
		faults = append(faults, fmt.Errorf("base image %w", err))
	}
	return errors.Join(faults...)
}

// secretsFor returns the configured secrets and those of the project. A build argument
// of the same name takes the place of either, and a secret of the project that of a
// configured one: what is closer to the user goes first.
func secretsFor(cfg Config, r Request, project map[string]string) []Secret {
	all := slices.DeleteFunc(cfg.Pip.secrets(), func(s Secret) bool { _, own := project[s.ID]; return own })
	for _, name := range slices.Sorted(maps.Keys(project)) {
		// By name only: a rotated value is no reason to build again, and a hash of the
		// value would tell who can guess it.
		all = append(all, Secret{ID: name, Value: project[name], Version: "project"})
	}
	return slices.DeleteFunc(all, func(s Secret) bool {
		return slices.ContainsFunc(r.BuildArgs, func(a Arg) bool { return a.Name == s.ID })
	})
}

// visible returns the secrets of the project that a build may see: those that the
// request allows, or all whose names can be environment variables. Keys that begin
// with "mlrun." are MLRun's own.
func visible(r Request, all map[string]string) (map[string]string, error) {
	seen := make(map[string]string, len(all))
	if r.Secrets == nil {
		for name, value := range all {
			if !strings.HasPrefix(name, "mlrun.") && dockerfile.CheckName(name) == nil {
				seen[name] = value
			}
		}
		return seen, nil
	}
	var faults []error
	for _, name := range r.Secrets {
		value, ok := all[name]
		switch {
		case strings.HasPrefix(name, "mlrun.") || dockerfile.CheckName(name) != nil:
			faults = append(faults, fmt.Errorf("options.secrets: %.80q cannot be an environment variable", name))
		case !ok:
			faults = append(faults, fmt.Errorf("options.secrets: project %s has no secret %s", r.Project, name))
		default:
			seen[name] = value
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, &Error{Kind: KindInvalidRequest, Op: "reading the secrets of the project", Err: err}
	}
	return seen, nil
}

// pinned returns the reference that FROM names: by digest if it is known.
func pinned(base Image) string {
	if base.Ref == Scratch || base.Digest == "" {
		return base.Ref
	}
	return repository(base.Ref) + "@" + base.Digest
}

// repository cuts tag and digest off a reference.
func repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}

// SecretValues returns every value of the plan that must not be shown.
func (p Plan) SecretValues() []string {
	var values []string
	for _, a := range p.BuildArgs {
		if a.Secret {
			values = append(values, a.Value)
		}
		values = append(values, credentials(a.Value)...)
	}
	for _, s := range p.Secrets {
		if !s.Public {
			values = append(values, s.Value)
			values = append(values, credentials(s.Value)...)
		}
	}
	if p.Source != nil {
		values = append(values, credentials(p.Source.URL)...)
	}
	return slices.DeleteFunc(values, func(s string) bool { return s == "" })
}
