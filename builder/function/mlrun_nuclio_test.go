package function_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/nuclio"
)

// nuclioBuild is one function as Nuclio gets it.
type nuclioBuild struct {
	build
	made nuclio.Function
}

// checkNuclio checks the configuration that Nuclio gets. Cases about a part of it are
// told apart by what they give.
func checkNuclio(c mlrunCase) []difference {
	var d diffs
	switch {
	case c.function != nil:
		d.nuclioFunction(c)
	case c.in.has("extra_args"):
		b := c.nuclioOf(function.Input{}, map[string]any{"build": map[string]any{"extra_args": orEmpty(c.in, "extra_args")}})
		flags, _ := get[[]any](c.want, "flags")
		d.equal("flags", flags, b.at("spec.build.flags"))
	case c.in.has("function_handler"):
		b := c.nuclioOf(function.Input{}, map[string]any{
			"function_handler": orEmpty(c.in, "function_handler"), "build": map[string]any{"source": "git://h/r#b"},
		})
		d.equal("workdir", orEmpty(c.want, "workdir"), b.at("spec.build.codeEntryAttributes.workDir"))
		d.equal("handler", orEmpty(c.want, "handler"), b.at("spec.handler"))
	case c.want.has("nuclio_runtime"):
		in := function.Input{ClientVersion: orEmpty(c.in, "client_version"), ClientPythonVersion: orEmpty(c.in, "client_python_version")}
		b := c.nuclioOf(in, map[string]any{})
		d.equal("nuclio_runtime", orEmpty(c.want, "nuclio_runtime"), b.at("spec.runtime"))
	default:
		panic(shapeError{"nobody knows what the case is about"})
	}
	return d.list
}

// nuclioOf resolves a function with these fields.
func (c mlrunCase) nuclioOf(in function.Input, fields map[string]any) nuclioBuild {
	in.Function = named(map[string]any{"kind": "nuclio", "spec": fields})
	return c.nuclioResolved(in, nil)
}

func (c mlrunCase) nuclioResolved(in function.Input, secrets map[string]string) nuclioBuild {
	config, _ := c.config()
	server := c.in.object("config")
	set(server, "function.spec.image_pull_secret.default", &config.Nuclio.ImagePullSecret)
	set(server, "v3io_api", &config.Nuclio.V3IOAPI)
	set(server, "default_nuclio_runtime", &config.Nuclio.Runtime)
	set(server, "nuclio_version", &config.Nuclio.Version)
	b := nuclioBuild{build: build{config: config, in: in}}
	if b.req, b.err = function.Resolve(config, in); b.err != nil {
		return b
	}
	if b.req.Nuclio == nil {
		b.err = builder.Errorf(builder.KindInvalidRequest, "", "Nuclio has no part in it")
		return b
	}
	b.made, b.err = b.req.Nuclio.Function(secrets)
	return b
}

// nuclioFunction compares a whole function.
func (d *diffs) nuclioFunction(c mlrunCase) {
	object := maps.Clone(c.function)
	if commands, ok := object["config_spec_build_commands"]; ok {
		object = with(object, map[string]any{"spec.build.commands": commands}, "spec", "config")
	}
	in := c.input(nil)
	in.Function = named(object)
	if env, ok := get[map[string]string](c.in, "builder_env"); ok {
		in.BuilderEnv = env
	}
	b := c.nuclioResolved(in, c.nuclioSecrets())
	if text, ok := get[string](c.want, "error"); ok {
		if b.err == nil || !strings.Contains(b.err.Error(), "spec.build.source:") {
			d.add("error", text, describe(b.build))
		}
		c.want.readAll()
		return
	}
	if b.err != nil {
		d.add("result", "handed to Nuclio", describe(b.build))
		c.want.readAll()
		return
	}
	for _, key := range slices.Sorted(maps.Keys(c.want.keys)) {
		d.nuclioFact(c, b, key)
	}
}

// nuclioSecrets are those of the project. MLRun takes the session of its caller for a
// v3io source; here it is the project's key.
func (c mlrunCase) nuclioSecrets() map[string]string {
	secrets := map[string]string{}
	given, _ := get[map[string]string](c.in, "project_secrets")
	auth := c.in.object("auth_info")
	for _, key := range []string{"access_key", "data_session"} {
		if session, ok := get[*string](auth, key); ok && session != nil {
			secrets["V3IO_ACCESS_KEY"] = *session
		}
	}
	maps.Copy(secrets, given)
	return secrets
}

func (d *diffs) nuclioFact(c mlrunCase, b nuclioBuild, key string) {
	want, _ := get[any](c.want, key)
	switch {
	case key == "nuclio_base_image":
		d.equal("base_image", want, b.at("spec.build.baseImage"))
	case key == "nuclio_spec_build_commands":
		d.nuclioCommands(want, b.at("spec.build.commands"))
	case key == "nuclio_spec_imagePullSecrets":
		d.equal("imagePullSecrets", want, b.at("spec.imagePullSecrets"))
	case strings.HasPrefix(key, "spec."), strings.HasPrefix(key, "metadata."):
		d.equal(key, want, b.at(key))
	default:
		panic(shapeError{"nobody knows expect." + key})
	}
}

const pipInstall = "python -m pip install "

// nuclioCommands compares the words of the last command one by one, so that each
// requirement is a fact of its own.
func (d *diffs) nuclioCommands(want, got any) {
	wanted, _ := want.([]any)
	made, _ := got.([]any)
	if len(wanted) == 0 || len(wanted) != len(made) {
		d.equal("commands", want, got)
		return
	}
	last := len(wanted) - 1
	a, _ := wanted[last].(string)
	b, _ := made[last].(string)
	if a == b || !strings.HasPrefix(a, pipInstall) || !strings.HasPrefix(b, pipInstall) {
		d.equal("commands", want, got)
		return
	}
	d.equal("commands", wanted[:last], made[:last])
	d.add("commands.pip", a, b)
}

// at returns what is at a path of the configuration.
func (b nuclioBuild) at(path string) any { return at(b.made.Config, strings.Split(path, ".")...) }

// brokenOption is an option with its value in one quoted word.
var brokenOption = regexp.MustCompile(`'(--?[A-Za-z-]+) ([^']*)'`)

func nuclioDeviations() []deviation {
	return []deviation{
		{
			Section: inNuclio, Rule: "An option with its value in one requirement (--extra-index-url U) is quoted as one word, which pip does not know; only -r is understood.",
			Verdict: better, Reason: "The option and its value are a word each.",
			Covers: func(_ mlrunCase, d difference) bool {
				mended := brokenOption.ReplaceAllString(d.Want, "$1 $2")
				return isField(d, "commands.pip") && mended != d.Want && strings.ReplaceAll(mended, "'", "") == strings.ReplaceAll(d.Got, "'", "")
			},
		},
		{
			Section: inNuclio, Rule: "Every deploy puts a requirement for mlrun in front, even where the function lists one.",
			Verdict: better, Reason: "As for images that are built here, one requirement for mlrun is enough; and a suffix of the tag is no part of a version.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "commands.pip") && (badPin.MatchString(d.Want) && !badPin.MatchString(d.Got) ||
					strings.Count(d.Want, "mlrun[complete]") == strings.Count(d.Got, "mlrun[complete]")+1)
			},
		},
		{
			Section: inNuclio, Rule: "Commands, requirements and inline code are handed on unchecked.",
			Verdict: better, Reason: "They follow the rules for every other function: blanks and comments are dropped, and what cannot be read is refused with its field.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "result") && strings.Contains(d.Got, "spec.build.functionSourceCode:")
			},
		},
	}
}
