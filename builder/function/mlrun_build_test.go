package function_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder"
	"kiln/builder/dockerfile"
	"kiln/builder/function"
)

// outcome is how a request ends in Kiln, or that it does not end yet.
type outcome string

const (
	started   outcome = "build.started"
	notNeeded outcome = "build.completed{not_needed}"
	failed    outcome = "build.failed"
)

// outcomes maps MLRun's words for a state to what Kiln publishes.
func outcomes() map[string]outcome {
	return map[string]outcome{
		"build_started": started, "ready_without_build": notNeeded, "error": failed,
		"deploying": started, "pending": started, "running": started, "ready": notNeeded,
	}
}

// build is one request as Kiln takes it.
type build struct {
	config function.Config
	in     function.Input
	req    builder.Request
	plan   builder.Plan
	err    error
}

func (b build) outcome() outcome {
	switch {
	case b.err != nil:
		return failed
	case b.req.Decision.Build:
		return started
	default:
		return notNeeded
	}
}

func resolveCase(c mlrunCase, config function.Config, plans builder.Config, in function.Input) build {
	b := build{config: config, in: in}
	if b.req, b.err = function.Resolve(config, in); b.err != nil || !b.req.Decision.Build {
		return b
	}
	secrets := map[string]string{}
	keys, _ := get[[]string](c.in, "project_secret_keys")
	for _, key := range keys {
		secrets[key] = "value of " + key
	}
	b.plan, b.err = builder.Pin(context.Background(), plans, world{secrets: secrets}.lookup(), b.req)
	return b
}

// diffs collects differences.
type diffs struct{ list []difference }

func (d *diffs) add(field string, want, got any) {
	d.list = append(d.list, difference{field, fmt.Sprint(want), fmt.Sprint(got)})
}

// equal notes a difference unless want and got are equal; nil and empty are.
func (d *diffs) equal(field string, want, got any) {
	if !reflect.DeepEqual(want, got) && (!empty(want) || !empty(got)) {
		d.add(field, want, got)
	}
}

func empty(v any) bool {
	value := reflect.ValueOf(v)
	switch value.Kind() {
	case reflect.Invalid:
		return true
	case reflect.Slice, reflect.Map, reflect.String:
		return value.Len() == 0
	default:
		return value.IsZero()
	}
}

// checkServerBuild checks what the server makes of a request.
func checkServerBuild(c mlrunCase) []difference {
	var d diffs
	config, plans := c.config()
	if project := c.project(); project != nil {
		config.Projects = map[string]function.Project{"my-proj": *project}
	}
	// The server takes an absent with_mlrun for true.
	in := c.input(new(true))
	b := resolveCase(c, config, plans, in)
	if source := textAt(c.function, "spec", "build", "source"); strings.HasPrefix(source, "/") && b.err != nil {
		d.add("source.path", "looked for in the context, where nothing is", b.err)
		in.Function = named(with(c.function, "https://archives.example.com"+source, "spec", "build", "source"))
		b = resolveCase(c, config, plans, in)
	}
	if b.err != nil && refusedFlag.MatchString(b.err.Error()) && !c.want.has("error") {
		d.add("args.refused", c.build("extra_args"), b.err)
		in.Function = named(with(c.function, takenFlags(c.build("extra_args")), "spec", "build", "extra_args"))
		b = resolveCase(c, config, plans, in)
	}
	if d.result(c.want, b) {
		d.answer(c, b)
	}
	return d.list
}

// takenFlags leaves out the flags that Kiln refuses, so that the rest can be compared.
func takenFlags(text string) string {
	var taken []string
	for part := range strings.SplitSeq(" "+text, " --") {
		if part != "" && !flagIsRefused("--"+part) {
			taken = append(taken, "--"+part)
		}
	}
	return strings.Join(taken, " ")
}

// project returns the project's part of a server case, if there is any.
func (c mlrunCase) project() *function.Project {
	selector, known := get[map[string]string](c.in, "project_default_node_selector")
	accounts := c.in.object("project_service_accounts")
	p := function.Project{NodeSelector: selector}
	p.ServiceAccounts, _ = get[[]string](accounts, "allowed")
	p.ServiceAccount, _ = get[string](accounts, "default")
	if !known && len(accounts.keys) == 0 {
		return nil
	}
	return &p
}

// result compares how the request ends, and reports whether there is more to compare.
func (d *diffs) result(want *facts, b build) bool {
	got, found := b.outcome(), len(d.list)
	expected := ""
	for _, key := range []string{"result", "state"} {
		if word, ok := get[string](want, key); ok {
			expected = word
			if state, known := outcomes()[word]; (!known || state != got) && len(d.list) == found {
				d.add("result", word, describe(b))
			}
		}
	}
	required, ok := get[*bool](want, "build_required")
	if ok && required != nil && *required != (got == started) && len(d.list) == found {
		d.add("result", fmt.Sprintf("build required: %t", *required), describe(b))
	}
	if ready, ok := get[bool](want, "ready"); ok && ready != (got == notNeeded) && len(d.list) == found {
		d.add("result", fmt.Sprintf("ready: %t", ready), describe(b))
	}
	if text, ok := get[string](want, "error"); ok && b.err != nil {
		d.refusal(text, b.err)
	}
	if len(d.list) > found || expected == "error" || got == failed {
		want.readAll()
		return false
	}
	return true
}

func describe(b build) string {
	if b.err != nil {
		return fmt.Sprintf("%s: %v", b.outcome(), b.err)
	}
	return fmt.Sprintf("%s: %s", b.outcome(), b.req.Decision.Reason)
}

// refused are MLRun's refusals, by a part of their text, with the fields that Kiln
// names. Others are only held to be refusals.
func refused() map[string][]string {
	return map[string][]string{
		"base64":                              {"spec.build.functionSourceCode"},
		"--build-arg":                         {"spec.build.extra_args"},
		"Invalid arguments format":            {"spec.build.extra_args"},
		"Invalid argument sequence":           {"spec.build.extra_args"},
		"must be a compressed":                {"spec.build.source"},
		"Load of relative source":             {"spec.build.source"},
		"enforces image name":                 {"spec.build.image"},
		"Default docker registry":             {"spec.build.image"},
		"Local container registry":            {"spec.build.base_image", "spec.image"},
		"no image was specified":              {"spec.image"},
		"requirements must be a list":         {"spec.build.requirements"},
		"commands must be":                    {"spec.build.commands"},
		"must be a valid URL or absolute pat": {"spec.build.source"},
		"service account":                     {"spec.service_account"},
	}
}

func (d *diffs) refusal(text string, err error) {
	for part, fields := range refused() {
		if !strings.Contains(text, part) {
			continue
		}
		for _, field := range fields {
			if strings.Contains(err.Error(), field+":") {
				return
			}
		}
		d.add("error", text+" (about "+strings.Join(fields, " or ")+")", err)
	}
}

// answer compares everything that is decided about a request that is not refused.
func (d *diffs) answer(c mlrunCase, b build) {
	want := c.want
	if !b.req.Decision.Build {
		if image, ok := get[string](want, "spec_image"); ok {
			d.sameImage("spec_image", b, image, b.req.Decision.Image)
		}
		return
	}
	// MLRun writes into the function what Kiln leaves as the user wrote it.
	d.untouched(c, "spec_image", textAt(c.function, "spec", "image"))
	d.untouched(c, "stored_requirements", textsAt(c.function, "spec", "build", "requirements"))
	d.untouched(c, "stored_commands", textsAt(c.function, "spec", "build", "commands"))
	if base, ok := get[string](want, "stored_base_image"); ok && !strings.Contains(b.req.Decision.Reason, " "+base) {
		d.add("stored_base_image", base, b.req.Decision.Reason)
	}
	if base, ok := get[string](want, "base_image"); ok {
		d.equal("base_image", base, b.req.Base)
	}
	if image, ok := get[string](want, "target_image"); ok {
		again := b.in
		again.Function = named(with(decode(b.in.Function), image, "spec", "build", "image"))
		req, err := function.Resolve(b.config, again)
		if err != nil || req.Target != b.req.Target {
			d.add("target_image", image, fmt.Sprint(b.req.Target, " but ", req.Target, err))
		}
	}
	if destination, ok := get[string](want, "destination"); ok {
		ref, err := name.ParseReference(destination)
		if err != nil || ref.Name() != fullName(b.req.Target) {
			d.add("destination", destination, b.req.Target)
		}
	}
	d.content(c, b)
	if secret, ok := get[*string](want, "build_secret"); ok {
		d.equal("build_secret", deref(secret), b.req.RegistrySecret)
	}
	if n, ok := get[int](want, "warnings"); ok {
		d.equal("warnings", n, strings.Count(b.req.Decision.Reason, "Note: "))
	}
	d.executor(want, b)
	d.pod(want.object("pod"), b)
}

func (d *diffs) untouched(c mlrunCase, key string, own any) {
	want, ok := get[any](c.want, key)
	if !ok {
		return
	}
	if a, o := jsonText(want), jsonText(own); a != o {
		d.add(key, a, "the function is not changed: "+o)
	}
}

// content compares what the image is made of.
func (d *diffs) content(c mlrunCase, b build) {
	want := c.want
	if where, ok := get[string](want, "context"); ok {
		switch s := b.req.Source; {
		case s == nil && where != "/empty":
			d.add("context", where, "no source")
		case s != nil && where == "/empty":
			d.add("source", "none", s.URL)
		case s != nil:
			d.add("context", where, "fetched by Kiln from "+s.URL)
		}
	}
	if target, ok := get[*string](want, "source_code_target_dir"); ok {
		got := ""
		if b.req.Source != nil {
			got = b.req.Source.Target
		}
		d.equal("source_code_target_dir", deref(target), got)
	}
	if lines, ok := get[[]string](want, "dockerfile"); ok {
		d.list = append(d.list, compareDockerfile(lines, b.plan)...)
	}
	if lines, ok := get[[]string](want, "requirements_file"); ok {
		d.equal("requirements_file", lines, requirementsOf(b.plan))
	}
}

// requirementsOf returns the lines that pip reads.
func requirementsOf(plan builder.Plan) []string {
	for _, file := range plan.Context {
		if file.Name == dockerfile.RequirementsFile {
			return strings.Split(strings.TrimSuffix(string(file.Data), "\n"), "\n")
		}
	}
	return nil
}

// sameImage wants got to be the image that MLRun's text stands for.
func (d *diffs) sameImage(field string, b build, want, got string) {
	in := function.Input{Function: named(map[string]any{"spec": map[string]any{"image": want}})}
	req, err := function.Resolve(function.Config{Registry: b.config.Registry}, in)
	if err != nil || want != got && req.Decision.Image != got {
		d.add(field, want, got)
	}
}

func fullName(text string) string {
	ref, err := name.ParseReference(text)
	if err != nil {
		return text
	}
	return ref.Name()
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
