package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/kaniko"
	"kiln/builder/registry"
	"kiln/events"
	"kiln/worker"
)

type planCmd struct {
	requestFlags
	Pin    bool   `env:"-" help:"Look the base image up in its registry, and show the build id."`
	Output string `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
	buildFlags
}

// Help is shown below the flags.
func (planCmd) Help() string {
	return `Shows what a worker with the same settings would do with the function: whether an
image is built and why, the Dockerfile, target, base, arguments, and what the
identity of the build is made of. Nothing is contacted, unless --pin is given.

Examples:
  kiln plan -f function.yaml --registry-url registry.example.com/team
  kiln plan -f function.yaml --pin -o json`
}

// planView is the plan as it is shown; secret values are not in it.
type planView struct {
	Needed       bool              `json:"needed"`
	Reason       string            `json:"reason"`
	Function     events.Function   `json:"function"`
	Image        string            `json:"image"`
	Target       string            `json:"target,omitempty"`
	Base         *events.Base      `json:"base,omitempty"`
	Platform     string            `json:"platform,omitempty"`
	Timeout      string            `json:"timeout,omitempty"`
	Dockerfile   string            `json:"dockerfile,omitempty"`
	Context      map[string]string `json:"context,omitempty"`
	BuildArgs    map[string]string `json:"build_args,omitempty"`
	Secrets      []string          `json:"secrets,omitempty"`
	ExecutorArgs []string          `json:"executor_args,omitempty"`
	BuildID      string            `json:"build_id,omitempty"`
	Identity     []builder.Field   `json:"identity,omitempty"`
}

// Run prints the plan.
func (p *planCmd) Run(ctx context.Context, s streams) error {
	request, err := p.request(s)
	if err != nil {
		return err
	}
	resolved, err := function.Resolve(p.function(), worker.Input("plan", &request))
	if err != nil {
		return usage(err)
	}
	view := planView{
		Needed: resolved.Decision.Build, Reason: resolved.Decision.Reason,
		Function: events.Function{Project: resolved.Project, Name: resolved.Name, Tag: resolved.Tag},
		Image:    resolved.Decision.Image,
	}
	if resolved.Decision.Build {
		plan, err := p.plan(ctx, resolved)
		if err != nil {
			return err
		}
		view.fill(resolved, plan, p.registry())
	}
	if p.Output == "json" {
		return writeJSON(s.out, view)
	}
	return view.print(s.out)
}

func (p *planCmd) plan(ctx context.Context, r builder.Request) (builder.Plan, error) {
	cfg, err := p.builder()
	if err != nil {
		return builder.Plan{}, err
	}
	if !p.Pin {
		plan, err := builder.Draft(cfg, r)
		if err != nil {
			return plan, usage(err)
		}
		return plan, nil
	}
	images, err := registry.New(p.registry())
	if err != nil {
		return builder.Plan{}, err
	}
	defer images.Close()
	return builder.Pin(ctx, cfg, builder.Lookup{Registry: images}, r)
}

func (v *planView) fill(r builder.Request, plan builder.Plan, images registry.Config) {
	v.Image, v.Target, v.Platform = r.UserImage, plan.Target, plan.Platform
	v.Base = &events.Base{Ref: plan.Base.Ref, Digest: plan.Base.Digest}
	v.Timeout, v.Dockerfile = plan.Limits.Timeout.String(), plan.Dockerfile
	v.BuildID, v.Identity = plan.BuildID, plan.Identity
	if plan.Destination == "" {
		plan.Destination = "REPOSITORY:kiln-BUILD_ID"
	}
	v.ExecutorArgs = kaniko.Args(plan, kaniko.Options{Insecure: images.Insecure})
	for _, f := range plan.Context {
		if v.Context == nil {
			v.Context = map[string]string{}
		}
		v.Context[f.Name] = string(f.Data)
	}
	for _, a := range plan.BuildArgs {
		if v.BuildArgs == nil {
			v.BuildArgs = map[string]string{}
		}
		v.BuildArgs[a.Name] = a.Value
		if a.Secret {
			v.BuildArgs[a.Name] = "***"
		}
	}
	for _, secret := range plan.Secrets {
		v.Secrets = append(v.Secrets, secret.ID)
	}
}

func (v planView) print(w io.Writer) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name, value)
		}
	}
	needed := "no build is needed"
	if v.Needed {
		needed = "an image is built, unless an identical build is finished"
	}
	line("function", v.Function.Project+"/"+v.Function.Name+":"+v.Function.Tag)
	line("decision", needed)
	line("why", v.Reason)
	line("image", v.Image)
	if v.Needed {
		line("target", v.Target)
		line("base", v.Base.Ref)
		line("pinned", v.Base.Digest)
		line("platform", v.Platform)
		line("timeout", v.Timeout)
		for name, value := range v.BuildArgs {
			line("build arg", name+"="+value)
		}
		line("secrets", strings.Join(v.Secrets, " "))
		fmt.Fprintf(&b, "\nDockerfile\n%s", indent(v.Dockerfile))
		for name, text := range v.Context {
			fmt.Fprintf(&b, "\n%s\n%s", name, indent(text))
		}
		fmt.Fprintf(&b, "\nexecutor arguments\n%s", indent(strings.Join(v.ExecutorArgs, "\n")))
		fmt.Fprintln(&b, "\nidentity (the build id is the SHA-256 of these fields)")
		for _, f := range v.Identity {
			fmt.Fprintf(&b, "  %-28s %s\n", f.Name, f.Value)
		}
		if v.BuildID == "" {
			fmt.Fprintln(&b, "  no build id yet: the base is pinned when it is built, or with --pin")
		} else {
			line("\nbuild id", v.BuildID)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	if !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
	return b.String()
}
