package builder

import (
	"cmp"
	"errors"
	"fmt"
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
	return newPlan(cfg, r, Image{Ref: r.Base})
}

// newPlan is the pure core: the same request, configuration and base image always
// give the same plan.
func newPlan(cfg Config, r Request, base Image) (Plan, error) {
	plan := Plan{
		Base: base, BuildArgs: slices.Clone(r.BuildArgs), Secrets: secretsFor(cfg, r), Target: r.Target,
		Platform: cmp.Or(r.Platform, cfg.Platform), Executor: cfg.Executor, Limits: cfg.Limits,
	}
	plan.Executor.Flags = slices.Clone(cfg.Executor.Flags)
	plan.Limits.Timeout = cmp.Or(r.Timeout, cfg.Timeout)
	if err := checkRequest(plan, r); err != nil {
		return Plan{}, &Error{Kind: KindInvalidRequest, Op: "planning the build", Err: err}
	}
	spec := dockerfile.Spec{
		Base: pinned(base), Commands: r.Commands, Requirements: r.Requirements, Extra: r.Extra,
	}
	for _, arg := range r.BuildArgs {
		spec.Args = append(spec.Args, arg.Name)
	}
	for _, secret := range plan.Secrets {
		spec.PipSecrets = append(spec.PipSecrets, secret.ID)
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

// secretsFor returns the configured secrets. A build argument of the same name is
// the user's own choice and takes the place of a configured one.
func secretsFor(cfg Config, r Request) []Secret {
	return slices.DeleteFunc(cfg.Pip.secrets(), func(s Secret) bool {
		return slices.ContainsFunc(r.BuildArgs, func(a Arg) bool { return a.Name == s.ID })
	})
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
	return slices.DeleteFunc(values, func(s string) bool { return s == "" })
}
