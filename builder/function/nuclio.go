package function

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/nuclio"
)

// resolveNuclio decides about a kind whose images Nuclio builds: nothing is built here,
// and the request holds what Nuclio makes the function of.
func (r resolver) resolveNuclio(req *builder.Request, args []builder.Arg, specifier string) {
	fields := r.specObject()
	base := r.nuclioBase(fields)
	spec := nuclio.Spec{
		Config: r.config.Nuclio, Object: r.in.Function,
		Kind: r.fn.kind, Project: r.fn.project, Name: r.fn.name, Tag: r.fn.tag, BaseImage: base.ref,
		Commands: r.fn.commands, Requirements: r.fn.requirements, Source: r.fn.source,
		Env: make(map[string]string, len(args)), Hidden: hiddenValues(fields, args),
		ClientVersion: r.in.ClientVersion, ClientPythonVersion: r.in.ClientPythonVersion,
	}
	if line := r.mlrunRequirement(base, false, specifier); line != "" {
		spec.Requirements = append([]string{line}, spec.Requirements...)
	}
	for _, arg := range args {
		spec.Env[arg.Name] = arg.Value
	}
	f, err := spec.Function(nil)
	r.faults.join(err)
	r.faults.check("spec.build.functionSourceCode", checkCode(r.fn.code))
	req.Nuclio, req.Secrets = &spec, r.in.Secrets
	req.Decision = builder.Decision{Image: base.ref, Reason: r.whyNuclio(base) + r.notes.String()}
	if base.ref == "" && err == nil {
		req.Decision.Image = runtimeOf(f)
	}
}

// nuclioBase returns the image that Nuclio is told to start from, completed: what the
// configuration says for it, spec.image, base_image, the project's default, and that of
// the kind only when the function adds nothing. Without one Nuclio starts from the
// image of the runtime.
func (r resolver) nuclioBase(fields object) baseImage {
	const path = "spec.build.baseImage"
	fields.faults = r.faults
	candidates := []baseImage{
		{from: "spec.config[" + path + "]", text: fields.child("config").text(path)},
		{from: "spec.base_spec." + path, text: fields.child("base_spec").child("spec").child("build").text("baseImage")},
		{from: "spec.image", text: r.fn.image},
		{from: "spec.build.base_image", text: r.fn.base},
		r.projectImage(),
	}
	if len(r.fn.commands) == 0 && len(r.fn.requirements) == 0 && (r.fn.source == "" || r.fn.loadOnRun) {
		candidates = append(candidates, r.kindImage())
	}
	return r.firstImage(r.enrich, candidates...)
}

func (r resolver) whyNuclio(base baseImage) string {
	to := base.String()
	if base.text == "" {
		to = "the image of its runtime"
	}
	var adds []string
	if n := len(r.fn.commands); n > 0 {
		adds = append(adds, plural(n, "command"))
	}
	if n := len(r.fn.requirements); n > 0 {
		adds = append(adds, plural(n, "requirement"))
	}
	if r.fn.source != "" {
		adds = append(adds, "its source")
	}
	if len(adds) == 0 {
		adds = []string{"nothing"}
	}
	reason := fmt.Sprintf("No build is needed: Nuclio builds the images of kind %s when they are deployed, and this function adds %s to %s.",
		r.fn.kind, and(adds), to)
	if strings.TrimSpace(r.fn.extra) != "" {
		reason += " Not used: spec.build.extra."
	}
	return reason
}

// hiddenValues are the values of the function's own variables, build arguments and
// flags that look secret.
func hiddenValues(fields object, args []builder.Arg) []string {
	var hidden []string
	for _, arg := range args {
		if arg.Secret {
			hidden = append(hidden, arg.Value)
		}
	}
	note := func(name, value string) {
		if looksSecret(name, value) {
			hidden = append(hidden, value)
		}
	}
	var env []struct{ Name, Value string }
	if json.Unmarshal(fields.keys["env"], &env) == nil {
		for _, v := range env {
			note(v.Name, v.Value)
		}
	}
	for word := range strings.FieldsSeq(fields.child("build").text("extra_args")) {
		if name, value, ok := strings.Cut(word, "="); ok {
			note(name, value)
		}
	}
	return slices.DeleteFunc(hidden, func(value string) bool { return value == "" })
}

// runtimeOf is the closest to an image that is known before Nuclio has built one.
func runtimeOf(f nuclio.Function) string {
	spec, _ := f.Config["spec"].(map[string]any)
	runtime, _ := spec["runtime"].(string)
	return runtime
}
