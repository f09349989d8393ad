package function_test

import (
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kiln/builder"
	"kiln/builder/function"
)

// call is a setter of MLRun's client with its arguments.
type call struct {
	Method string
	Args   map[string]any
}

// checkClientSpec publishes what the user gave to the client's setters as a function,
// as somebody without the client would, and what the client made of it; Kiln has to
// make the same image of both.
func checkClientSpec(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	calls, _ := get[[]call](c.in, "calls")
	// What the server adds to the requirements is not the client's business.
	config.MLRunVersion = ""
	published, known := naive(c.function, calls)
	raw := resolveCase(c, config, plans, function.Input{Function: named(published), WithMLRun: new(false)})
	if text, ok := get[string](c.want, "error"); ok {
		d.equal("error", failed, raw.outcome())
		if raw.err != nil {
			d.refusal(text, raw.err)
		}
		c.want.readAll()
		return d.list
	}
	after := c.want.object("spec_after")
	spec := map[string]any{}
	for key := range after.keys {
		spec[key], _ = get[any](after, key)
	}
	made := resolveCase(c, config, plans, function.Input{Function: named(map[string]any{"kind": c.function["kind"], "spec": spec}), WithMLRun: new(false)})
	if required, ok := get[bool](c.want, "requires_build"); ok && required != (made.outcome() == started) {
		d.add("requires_build", required, describe(made))
	}
	if made.err != nil || raw.err != nil {
		if known && made.outcome() != raw.outcome() {
			d.add("spec_after", describe(made), describe(raw))
		}
		return d.list
	}
	lines := made.req.Requirements
	if wanted := textsAt(spec, "build", "requirements"); len(lines) == len(wanted)+1 && strings.HasPrefix(lines[0], "mlrun[complete]==") {
		lines = lines[1:]
	}
	d.equal("spec_after.build.requirements", textsAt(spec, "build", "requirements"), lines)
	d.equal("spec_after.build.commands", textsAt(spec, "build", "commands"), made.req.Commands)
	if image := textAt(spec, "image"); image != "" && !made.req.Decision.Build {
		d.sameImage("spec_after.image", made, image, made.req.Decision.Image)
	}
	if base := textAt(spec, "build", "base_image"); made.req.Decision.Build && !strings.HasPrefix(made.req.Base, base) {
		d.add("spec_after.build.base_image", base, made.req.Base)
	}
	// Setters that merge lists leave repetitions out; lists that are published as they
	// are keep theirs.
	raw.req.Commands, raw.req.Requirements = distinct(raw.req.Commands), distinct(raw.req.Requirements)
	made.req.Commands, made.req.Requirements = distinct(made.req.Commands), distinct(made.req.Requirements)
	if diff := diffRequests(made.req, raw.req); known && diff != "" {
		d.add("spec_after", "what the client makes of it", diff)
	}
	return d.list
}

// naive puts the arguments of the setters into the function as they are. known is
// false when one of them does what only the client can, such as reading a file.
func naive(object map[string]any, calls []call) (published map[string]any, known bool) {
	known = true
	for _, call := range calls {
		overwrite, _ := call.Args["overwrite"].(bool)
		for _, key := range slices.Sorted(mapKeys(call.Args)) {
			value := call.Args[key]
			switch key {
			case "overwrite":
			case "commands", "requirements":
				list, isList := value.([]any)
				if old, ok := at(object, "spec", "build", key).([]any); ok && isList && !overwrite {
					value = slices.Concat(old, list)
				}
				object = with(object, value, "spec", "build", key)
			case "pull_at_runtime":
				object = with(object, value, "spec", "build", "load_source_on_run")
			case "target_dir":
				object = with(object, value, "spec", "build", "source_code_target_dir")
			case "source", "image", "base_image", "extra", "extra_args", "builder_env", "secret", "with_mlrun", "load_source_on_run", "auto_build":
				object = with(object, value, "spec", "build", key)
			case "workdir", "handler":
			default:
				known = false
			}
		}
		switch call.Method {
		case "with_requirements", "with_commands", "build_config", "with_source_archive":
		case "clean_build_params":
			object = with(object, map[string]any{}, "spec", "build")
		default:
			known = false
		}
	}
	return object, known
}

func mapKeys(m map[string]any) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

func distinct(list []string) []string {
	var once []string
	for _, item := range list {
		if !slices.Contains(once, item) {
			once = append(once, item)
		}
	}
	return once
}

// diffRequests compares what two requests build; the sentences for people may differ.
func diffRequests(a, b builder.Request) string {
	return cmp.Diff(a, b, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(builder.Request{}, "UserImage"),
		cmpopts.IgnoreFields(builder.Decision{}, "Reason"), cmpopts.IgnoreFields(builder.Source{}, "Order"))
}

// checkClientDeploy publishes the function as it is before the client completes the
// request, and the request that the client sends; both must come to the same.
func checkClientDeploy(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	args := c.in.object("deploy_args")
	in := function.Input{Function: c.object()}
	if flag, ok := get[bool](args, "with_mlrun"); ok {
		in.WithMLRun = &flag
	}
	in.SkipDeployed, _ = get[bool](args, "skip_deployed")
	in.ForceBuild, _ = get[bool](args, "force_build")
	in.MLRunVersionSpecifier, _ = get[string](args, "mlrun_version_specifier")
	in.BuilderEnv, _ = get[map[string]string](args, "builder_env")
	plain := resolveCase(c, config, plans, in)

	sent, request := in, c.want.object("request")
	if word, ok := get[string](request, "with_mlrun"); ok {
		sent.WithMLRun = new(word == "yes")
	}
	sent.SkipDeployed, _ = get[bool](request, "skip_deployed")
	sent.ForceBuild, _ = get[bool](request, "force_build")
	sent.MLRunVersionSpecifier, _ = get[string](request, "mlrun_version_specifier")
	sent.BuilderEnv, _ = get[map[string]string](request, "builder_env")
	if image, ok := get[string](c.want, "request_spec_image"); ok {
		sent.Function = named(with(c.function, image, "spec", "image"))
	}
	completed := resolveCase(c, config, plans, sent)
	if completed.outcome() != plain.outcome() {
		d.add("request", describe(completed), describe(plain))
	} else if diff := diffRequests(completed.req, plain.req); diff != "" {
		d.add("request", "what the client asks for", diff)
	}
	if base, ok := get[*string](c.want, "base_image"); ok && base != nil && !strings.HasPrefix(plain.req.Base, *base) {
		d.add("base_image", *base, plain.req.Base)
	}
	return d.list
}

// checkRun checks when a run makes a build first.
func checkRun(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	auto, _ := get[bool](c.in, "auto_build")
	// A build before a run leaves a function alone that is deployed.
	b := resolveCase(c, config, plans, function.Input{Function: c.object(), SkipDeployed: true})
	if _, ok := get[string](c.want, "warning"); ok && b.outcome() != started {
		d.add("warning", "the function has to be built", describe(b))
	}
	if c.want.has("build_request") {
		request, _ := get[any](c.want, "build_request")
		if needed := auto && b.outcome() == started; needed != (request != nil) {
			d.add("build_request", request, describe(b))
		}
	}
	return d.list
}
