package kube

import (
	"context"
	"strings"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// reach is how a build gets to its registries.
type reach struct {
	// options are what the executor's arguments are made of.
	options kaniko.Options
	// files are what it finds in the folder guarded, env are its variables. Both may hold
	// credentials.
	files []builder.File
	env   []variable
}

// variable is one of an environment.
type variable struct{ name, value string }

// newReach completes options with what follows from them.
func newReach(options kaniko.Options) (reach, error) {
	options.DigestFile, options.Dir, options.SecretDir = terminationLog, guarded, secretFiles
	r := reach{options: options}
	var err error
	if r.files, err = options.Files(); err != nil {
		return r, unavailable("preparing credentials", err)
	}
	env, err := options.Env()
	if err != nil {
		return r, unavailable("preparing credentials", err)
	}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		r.env = append(r.env, variable{name, value})
	}
	return r, nil
}

// reachFor finds out how the registries of the plan are reached.
func (c Config) reachFor(ctx context.Context, plan builder.Plan) (reach, error) {
	options := kaniko.Options{CredentialHelpers: c.CredentialHelpers}
	if c.Registries != nil {
		var err error
		options.Registries, err = kaniko.Reach(plan, func(host string) (builder.Access, error) {
			return c.Registries.Access(ctx, host, plan.RegistrySecret)
		})
		if err != nil && ctx.Err() != nil {
			return reach{}, canceled(ctx)
		}
		if err != nil {
			return reach{}, err
		}
	}
	return newReach(options)
}
