package function_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"kiln/builder/function"
)

// checkSpark checks the default images of Spark, and builds that start from them.
func checkSpark(c mlrunCase) []difference {
	config, plans := c.config()
	server := c.in.object("config")
	set(server, "spark_app_image", &config.Spark.Image)
	set(server, "spark_app_image_tag", &config.Spark.Tag)
	name, args := c.call()
	if name == "" {
		if c.function["kind"] != nil && config.Spark.Image == "" {
			return checkServerBuild(c)
		}
		var d diffs
		if b := resolveCase(c, config, plans, c.input(nil)); d.result(c.want, b) {
			d.answer(c, b)
		}
		return d.list
	}
	kind := function.KindSpark
	if strings.Contains(name, "Remote") {
		kind = function.KindRemoteSpark
	}
	gpu, _ := args["with_gpu"].(bool)
	var d diffs
	object, err := function.SparkImage(kind, "my-proj", gpu)
	if err != nil {
		d.add("result", c.what, err)
		return d.list
	}
	d.imageCall(c, resolveCase(c, config, plans, function.Input{Function: object}), object)
	return d.list
}

// checkProjectImage checks what becomes of project.build_image.
func checkProjectImage(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	_, args := c.call()
	project := map[string]any{"metadata": map[string]any{"name": "my-proj"}}
	if name, ok := get[string](c.in, "project"); ok {
		project["metadata"] = map[string]any{"name": name}
	}
	project["spec"], _ = get[map[string]any](c.in, "project_spec")
	object, err := json.Marshal(project)
	if err != nil {
		panic(shapeError{err.Error()})
	}
	p := function.ProjectImage{
		Object: object, Image: argument[string](args, "image"), BaseImage: argument[string](args, "base_image"),
		Commands: argument[[]string](args, "commands"), Requirements: argument[[]string](args, "requirements"),
		ExtraArgs: argument[string](args, "extra_args"), TargetDir: argument[string](args, "target_dir"),
	}
	resolve := func() (json.RawMessage, build) {
		made, err := p.Function()
		if err != nil {
			return nil, build{err: err}
		}
		return made, resolveCase(c, config, plans, function.Input{Function: made, BuilderEnv: argument[map[string]string](args, "builder_env")})
	}
	made, b := resolve()
	if b.err != nil && refusedFlag.MatchString(describe(b)) {
		d.add("args.refused", p.ExtraArgs, describe(b))
		p.ExtraArgs = ""
		made, b = resolve()
	}
	d.imageCall(c, b, made)
	return d.list
}

var (
	callText     = regexp.MustCompile(`^([\w.]+)\((.*)\)$`)
	callArgument = regexp.MustCompile(`(\w+)=(\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|[\w.]+)`)
)

// call reads a call of Python with named arguments.
func (c mlrunCase) call() (name string, args map[string]any) {
	text, ok := get[string](c.in, "call")
	if !ok {
		return "", nil
	}
	parts := callText.FindStringSubmatch(strings.TrimSpace(text))
	if parts == nil {
		panic(shapeError{"call: " + text})
	}
	args = map[string]any{}
	for _, m := range callArgument.FindAllStringSubmatch(parts[2], -1) {
		value := strings.NewReplacer("'", `"`, "True", "true", "False", "false", "None", "null").Replace(m[2])
		var decoded any
		if err := json.Unmarshal([]byte(value), &decoded); err != nil {
			panic(shapeError{fmt.Sprintf("call: %s: %v", m[0], err)})
		}
		args[m[1]] = decoded
	}
	for key := range args {
		if !slices.Contains([]string{
			"image", "base_image", "commands", "requirements", "extra_args", "target_dir", "builder_env", "with_gpu", "set_as_default",
		}, key) {
			panic(shapeError{"call: nobody knows " + key})
		}
	}
	return parts[1], args
}

func argument[T any](args map[string]any, key string) T {
	var value T
	text, err := json.Marshal(args[key])
	if err == nil {
		err = json.Unmarshal(text, &value)
	}
	if err != nil {
		panic(shapeError{fmt.Sprintf("call: %s: %v", key, err)})
	}
	return value
}

// imageCall compares what a call that makes an image leads to.
func (d *diffs) imageCall(c mlrunCase, b build, object json.RawMessage) {
	want := c.want
	var made map[string]any
	_ = json.Unmarshal(object, &made)
	fn := want.object("function")
	d.text(fn, "kind", "kind", textAt(made, "kind"))
	d.text(fn, "name", "name", textAt(made, "metadata", "name"))
	d.text(want, "kind", "kind", textAt(made, "kind"))
	d.text(want, "function_name", "name", textAt(made, "metadata", "name"))
	d.text(want, "target_image", "target_image", textAt(made, "spec", "build", "image"))
	d.text(want, "project.spec.default_image", "target_image", textAt(made, "spec", "build", "image"))
	d.text(want, "project.spec.build.source_code_target_dir", "target_dir", textAt(made, "spec", "build", "source_code_target_dir"))
	// The object is read, and never written.
	for _, key := range []string{"builder_env", "extra_args"} {
		if kept, ok := get[any](want, "project.spec.build."+key); ok && kept != nil {
			d.add("project.spec.build."+key, kept, "the project is not changed")
		}
	}
	if forced, ok := get[bool](want, "request.force_build"); ok {
		d.add("request.force_build", forced, fmt.Sprintf("always built: %t, again: %t", b.outcome() == started, b.req.Rebuild))
	}
	d.requestFlags(want.object("request"), b)
	if b.outcome() != started {
		d.add("result", started, describe(b))
		want.readAll()
		return
	}
	d.text(want, "base_image", "base_image", strings.TrimSuffix(b.req.Base, ":"+serverVersion))
	d.content(c, b)
	for _, line := range texts(want, "dockerfile_has") {
		d.hasLine(line, b)
	}
}

// requestFlags compares what the client sends beside the function.
func (d *diffs) requestFlags(want *facts, b build) {
	if word, ok := get[string](want, "with_mlrun"); ok {
		got := "no"
		if slices.ContainsFunc(b.req.Requirements, func(line string) bool { return strings.HasPrefix(line, "mlrun") }) {
			got = "yes"
		}
		d.equal("request.with_mlrun", word, got)
	}
	for key, got := range map[string]bool{"skip_deployed": b.in.SkipDeployed, "force_build": b.in.ForceBuild} {
		if flag, ok := get[bool](want, key); ok && flag != got {
			d.add("request."+key, flag, got)
		}
	}
}

// text compares a fact that is a text.
func (d *diffs) text(want *facts, key, field, got string) {
	if text, ok := get[string](want, key); ok {
		d.equal(field, strings.TrimSuffix(text, ":"+serverVersion), got)
	}
}

func imageCallDeviations() []deviation {
	return []deviation{
		{
			Section: inImages, Rule: "project.build_image forces the build.",
			Verdict: better, Reason: "The image of a project is always made, even of its base alone; one that is identical is used again, and --force or --no-cache makes it anew.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "request.force_build") && strings.Contains(d.Got, "always built: true")
			},
		},
		{
			Section: inImages, Rule: "The temporary function of an image is stored, and deleted afterwards; the project is stored with its new default image.",
			Verdict: notApplicable, Reason: "Kiln stores neither functions nor projects. The image is named in build.completed.",
			Covers: field("expect.after"),
		},
	}
}
