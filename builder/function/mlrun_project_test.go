package function_test

import (
	"strings"

	"kiln/builder/function"
)

// checkProject resolves a function of a project that has defaults, and what MLRun
// makes of the function before it looks at it; both must come to the same.
func checkProject(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	var in function.Input
	if c.in.has("request") {
		in = c.input(new(true))
	} else {
		in = function.Input{Function: c.object()}
	}
	enriched := in
	plain := config
	config.Projects = map[string]function.Project{"my-proj": projectOf(c.in.object("project_spec"))}
	b := resolveCase(c, config, plans, in)

	after := c.want.object("after_enrichment")
	if len(after.keys) > 0 {
		spec := map[string]any{}
		for key := range after.keys {
			spec[key], _ = get[any](after, key)
		}
		enriched.Function = named(map[string]any{"kind": c.function["kind"], "spec": spec})
		whole := resolveCase(c, plain, plans, enriched)
		if whole.outcome() != b.outcome() {
			d.add("after_enrichment", describe(whole), describe(b))
		} else if diff := diffRequests(whole.req, b.req); diff != "" {
			d.add("after_enrichment", "the function with the project's defaults in it", diff)
		}
	}
	if !d.result(c.want, b) {
		return d.list
	}
	if image, ok := get[string](c.want, "spec_image_after_build_call"); ok {
		if b.req.Decision.Build {
			d.equal("spec_image_after_build_call", textAt(c.function, "spec", "image"), image)
		} else {
			d.sameImage("spec_image_after_build_call", b, image, b.req.Decision.Image)
		}
	}
	d.content(c, b)
	return d.list
}

func projectOf(spec *facts) function.Project {
	var p function.Project
	p.DefaultImage, _ = get[string](spec, "default_image")
	p.DefaultRequirements, _ = get[[]string](spec, "default_requirements")
	p.Source, _ = get[string](spec, "source")
	p.LoadSourceOnRun, _ = get[bool](spec, "load_source_on_run")
	p.MountDir, _ = get[string](spec, "mountdir")
	p.NodeSelector, _ = get[map[string]string](spec, "default_function_node_selector")
	p.SourceTargetDir, _ = get[string](spec.object("build"), "source_code_target_dir")
	return p
}

// checkVersion holds Kiln to the newest of the versions that a case tells apart.
func checkVersion(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	env, _ := get[map[string]string](c.in, "builder_env")
	if c.function == nil {
		c.want.readNothing()
		return []difference{{"case.config", "builder backend", "Kaniko"}}
	}
	b := resolveCase(c, config, plans, function.Input{Function: c.object(), WithMLRun: new(false), BuilderEnv: env})
	if b.err != nil {
		d.add("result", started, describe(b))
		c.want.readAll()
		return d.list
	}
	if _, ok := get[string](c.want, "1.4+"); ok {
		l, err := readLayers(b.plan.Dockerfile)
		if err != nil || strings.Join(l.steps, " | ") != "run c | "+stepRequirements {
			d.add("1.4+", "commands, then requirements", l.steps)
		}
	}
	if kind, ok := get[string](c.want, "base_image_after"); ok {
		kind = strings.TrimPrefix(kind, "image_by_kind.")
		req, err := function.Resolve(config, function.Input{Function: named(map[string]any{"kind": kind})})
		if err != nil || !strings.HasPrefix(b.req.Base, req.Decision.Image) {
			d.add("base_image_after", req.Decision.Image, b.req.Base)
		}
	}
	d.content(c, b)
	for _, line := range texts(c.want, "dockerfile_has") {
		d.hasLine(line, b)
	}
	return d.list
}

func texts(f *facts, key string) []string {
	list, _ := get[[]string](f, key)
	return list
}

// hasLine wants what one line of MLRun's Dockerfile means to be in the plan's.
func (d *diffs) hasLine(line string, b build) {
	got, err := readLayers(b.plan.Dockerfile)
	if err != nil {
		d.add("dockerfile_has", line, err)
		return
	}
	have := " | " + strings.Join(got.steps, " | ") + " | "
	step := " | put the source into "
	if words := strings.Fields(line); len(words) > 2 {
		want, err := readLayers("FROM scratch\n" + line + "\n")
		if err != nil {
			d.add("dockerfile_has", line, err)
			return
		}
		step = " | " + strings.Join(want.steps, " | ") + " | "
	}
	if !strings.Contains(have, step) {
		d.add("dockerfile_has", line, have)
	}
}
