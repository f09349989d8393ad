package builder

import (
	"cmp"
	"fmt"
	"strings"

	"kiln/builder/dockerfile"
)

// Scratch is the empty base image; it is not looked up in a registry.
const Scratch = "scratch"

// Draft makes the plan of a request without any I/O. Its base is not pinned, so
// that it has no BuildID and no Destination yet. Errors are of KindInvalidRequest.
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
		Base: base, BuildArgs: r.BuildArgs, Secrets: cfg.Pip.secrets(), Target: r.Target,
		Platform: cmp.Or(r.Platform, cfg.Platform), Executor: cfg.Executor, Limits: cfg.Limits,
	}
	plan.Limits.Timeout = cmp.Or(r.Timeout, cfg.Timeout)
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
	return plan, nil
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
	}
	for _, s := range p.Secrets {
		if s.Value != s.Version {
			values = append(values, userInfos(s.Value)...)
		}
	}
	return values
}
