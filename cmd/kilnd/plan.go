package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"reflect"
	"strings"

	"sigs.k8s.io/yaml"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/kaniko"
	"kiln/builder/registry"
	"kiln/builder/source"
	"kiln/cmd/cli"
	"kiln/events"
	"kiln/worker"
)

type planCmd struct {
	cli.RequestFlags
	Pin    bool   `env:"-" help:"Look the base image up in its registry, and show the build id."`
	Output string `env:"-" short:"o" enum:"text,json" default:"text" help:"text or json."`
	buildFlags
}

// Help is shown below the flags.
func (planCmd) Help() string {
	return `Shows what a worker with the same settings would do with the function: whether an
image is built and why, the Dockerfile, target, base, arguments, and what the
identity of the build is made of; of functions that Nuclio builds the configuration
that it gets. Nothing is contacted, unless --pin is given.

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
	Source       *sourceView       `json:"source,omitempty"`
	Registry     string            `json:"registry_secret,omitempty"`
	Flags        []string          `json:"flags,omitempty"`
	Verbose      bool              `json:"verbose,omitempty"`
	Scheduling   *schedulingView   `json:"scheduling,omitempty"`
	ExecutorArgs []string          `json:"executor_args,omitempty"`
	BuildID      string            `json:"build_id,omitempty"`
	Nuclio       map[string]any    `json:"nuclio,omitempty"`
	Identity     []builder.Field   `json:"identity,omitempty"`
}

// sourceView is the code that goes into the image, without credentials.
type sourceView struct {
	URL     string `json:"url"`
	Target  string `json:"target"`
	Owner   string `json:"owner,omitempty"`
	Order   string `json:"order"`
	Version string `json:"version,omitempty"`
	// Local is the path that was packed; kiln build uploads it under the URL.
	Local string `json:"local,omitempty"`
}

// schedulingView is where the function asks to be built.
type schedulingView struct {
	NodeName       string            `json:"node_name,omitempty"`
	NodeSelector   map[string]string `json:"node_selector,omitempty"`
	Affinity       json.RawMessage   `json:"affinity,omitempty"`
	Tolerations    json.RawMessage   `json:"tolerations,omitempty"`
	PriorityClass  string            `json:"priority_class_name,omitempty"`
	ServiceAccount string            `json:"service_account,omitempty"`
}

// Run prints the plan.
func (p *planCmd) Run(ctx context.Context, s cli.Streams) error {
	request, err := p.Request(s)
	if err != nil {
		return err
	}
	local, err := p.PackSource(&request)
	if err != nil {
		return cli.Usage(err)
	}
	defer local.Close()
	rules, err := p.function()
	if err != nil {
		return err
	}
	resolved, err := function.Resolve(rules, worker.Input("plan", &request))
	if err != nil {
		return cli.Usage(err)
	}
	view := planView{
		Needed: resolved.Decision.Build, Reason: resolved.Decision.Reason,
		Function: events.Function{Project: resolved.Project, Name: resolved.Name, Tag: resolved.Tag},
		Image:    resolved.Decision.Image,
	}
	if resolved.Decision.Build {
		images, err := registry.New(p.registry())
		if err != nil {
			return cli.Usage(err)
		}
		defer images.Close()
		plan, err := p.plan(ctx, resolved, images, local)
		if err != nil {
			return err
		}
		pushing := plan
		pushing.Destination = cmp.Or(plan.Destination, plan.Target)
		reached, err := kaniko.Reach(pushing, images.Reach)
		if err != nil {
			return cli.Usage(err)
		}
		view.fill(resolved, plan, reached)
		if view.Source != nil && local != nil {
			view.Source.Local = local.Path
		}
	}
	if resolved.Nuclio != nil {
		if view.Nuclio, err = p.nuclio(ctx, resolved); err != nil {
			return err
		}
	}
	if p.Output == "json" {
		return cli.WriteJSON(s.Out, view)
	}
	return view.print(s.Out)
}

func (p *planCmd) plan(ctx context.Context, r builder.Request, images *registry.Registry, local *cli.LocalSource) (builder.Plan, error) {
	cfg, err := p.builder()
	if err != nil {
		return builder.Plan{}, err
	}
	if !p.Pin {
		plan, err := builder.Draft(cfg, r)
		if err != nil {
			return plan, cli.Usage(err)
		}
		return plan, nil
	}
	store, err := p.secrets()
	if err != nil {
		return builder.Plan{}, err
	}
	sources, closeSources, err := p.sources(local)
	if err != nil {
		return builder.Plan{}, err
	}
	defer closeSources()
	return builder.Pin(ctx, cfg, builder.Lookup{Registry: images, Sources: sources, Secrets: store}, r)
}

// sources finds code for a plan, with a cache for this once unless one is configured.
func (p *planCmd) sources(local *cli.LocalSource) (*source.Sources, func(), error) {
	dir, err := os.MkdirTemp("", "kiln-plan-*")
	if err != nil {
		return nil, nil, fmt.Errorf("make a folder for sources: %w", err)
	}
	remove := func() { _ = os.RemoveAll(dir) }
	cfg, err := p.Sources.config(dir, local)
	if err != nil {
		remove()
		return nil, nil, err
	}
	sources, err := source.New(cfg)
	if err != nil {
		remove()
		return nil, nil, err
	}
	return sources, func() {
		_ = sources.Close()
		remove()
	}, nil
}

// nuclio is the configuration that Nuclio gets; the project's secrets are part of it
// only when the plan looks things up.
func (p *planCmd) nuclio(ctx context.Context, r builder.Request) (map[string]any, error) {
	var lookup builder.Lookup
	if p.Pin {
		store, err := p.secrets()
		if err != nil {
			return nil, err
		}
		lookup.Secrets = store
	}
	f, err := lookup.Nuclio(ctx, r)
	if err != nil {
		return nil, err
	}
	return f.Shown(builder.NewRedactor(f.Secrets...).Text), nil
}

func (v *planView) fill(r builder.Request, plan builder.Plan, registries []builder.Access) {
	v.Image, v.Target, v.Platform = r.UserImage, plan.Target, plan.Platform
	v.Base = &events.Base{Ref: plan.Base.Ref, Digest: plan.Base.Digest}
	v.Timeout, v.Dockerfile = plan.Limits.Timeout.String(), plan.Dockerfile
	v.BuildID, v.Identity = plan.BuildID, plan.Identity
	if plan.Destination == "" {
		plan.Destination = "REPOSITORY:kiln-BUILD_ID"
	}
	v.ExecutorArgs = kaniko.Args(plan, kaniko.Options{Registries: registries})
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
	v.Registry, v.Flags, v.Verbose = plan.RegistrySecret, r.Flags, plan.Verbose
	if s := plan.Source; s != nil {
		v.Source = &sourceView{URL: shownSource(s.URL), Target: s.Target, Owner: s.Owner, Order: s.Order, Version: s.Version}
	}
	if s := schedulingView(plan.Scheduling); !reflect.ValueOf(s).IsZero() {
		v.Scheduling = &s
	}
}

// shownSource returns an address without user info and query, which hold credentials.
// git's short form of an ssh address has none.
func shownSource(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	u, err := url.Parse(text)
	if err != nil {
		return "***"
	}
	u.User = nil
	if u.RawQuery != "" {
		u.RawQuery = "***"
	}
	return u.String()
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
		v.printWishes(line)
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
	if v.Nuclio != nil {
		config, err := yaml.Marshal(v.Nuclio)
		if err != nil {
			return fmt.Errorf("print Nuclio's configuration: %w", err)
		}
		fmt.Fprintf(&b, "\nconfiguration for Nuclio\n%s", indent(string(config)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printWishes prints what the function asks for beside the content of its image.
func (v planView) printWishes(line func(name, value string)) {
	if s := v.Source; s != nil {
		line("source", s.URL)
		line("packed", s.Local)
		line("folder", s.Target)
		line("owner", s.Owner)
		line("order", s.Order)
		line("version", s.Version)
	}
	line("registry", v.Registry)
	line("flags", strings.Join(v.Flags, " "))
	if v.Scheduling != nil {
		if text, err := json.Marshal(v.Scheduling); err == nil {
			line("scheduling", string(text))
		}
	}
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
