// Package nuclio makes the configuration that MLRun hands to Nuclio for functions of
// the kinds nuclio, remote and serving, whose images Nuclio builds itself. It is pure.
//
// What shapes the image follows MLRun's server: base image, commands with the
// requirements as one pip command at their end, flags, source, inline code, secrets
// of registries and the runtime. What only matters once the function runs (variables,
// volumes, resources, replicas, scheduling) is passed on as the function says it.
package nuclio

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"kiln/builder/lazyregexp"
)

// Labels and annotations of Nuclio's functions.
const (
	// LabelProject names the project.
	LabelProject = "nuclio.io/project-name"
	labelTag     = "nuclio.io/tag"
	labelClass   = "mlrun/class"
	generatedBy  = "nuclio.io/generated_by"
)

// Config is the operator's part of the rules. The zero value has MLRun's defaults.
type Config struct {
	// Namespace of the functions. Empty: the dashboard's own.
	Namespace string
	// Runtime of functions that name none. Defaults to python:3.9.
	Runtime string
	// Version of Nuclio ("1.13.0"): before 1.6 it has no newer runtime than python:3.6.
	// Empty: a recent one.
	Version string
	// ImagePullSecret and BuildSecret are Kubernetes secrets with registry credentials,
	// for functions that name none; a function's own that differs from these goes first.
	ImagePullSecret, BuildSecret string
	// V3IOAPI is the address for v3io sources without a host ("http://v3io-webapi:8081").
	V3IOAPI string
}

// Spec is what a configuration is made of.
type Spec struct {
	Config Config
	// Object is the MLRun function object.
	Object json.RawMessage
	// Kind, Project, Name and Tag are the object's, normalised. An empty Tag is latest.
	Kind, Project, Name, Tag string
	// BaseImage is a full reference. Empty: the image of the runtime.
	BaseImage string
	// Commands and Requirements are the function's, mlrun's own requirement included.
	// Commands that spec.config sets go before Commands.
	Commands, Requirements []string
	// Source is where the code comes from, after the project's rules. Empty: the function
	// has inline code, or none.
	Source string
	// Env are the build arguments (builder_env), from which credentials of the source are
	// taken.
	Env map[string]string
	// Hidden are values of Object that must not be shown.
	Hidden []string
	// ClientVersion and ClientPythonVersion are those of MLRun's client, if it said so.
	ClientVersion, ClientPythonVersion string
}

// Function is a function as Nuclio takes it.
type Function struct {
	// Name is Nuclio's name of it, "project-name" with "-tag" unless that is latest.
	Name, Project, Namespace string
	// Config is the whole configuration, of JSON values: apiVersion, kind, metadata, spec.
	Config map[string]any
	// Secrets are the values in Config that must not be shown.
	Secrets []string
}

var nameRule = lazyregexp.New(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// Function makes the configuration. Secrets are those of the project, from which
// credentials are taken that Env lacks; nil leaves such credentials empty. The error
// joins every fault, each with the field of the object that it is about, and repeats
// no credentials.
func (s Spec) Function(secrets map[string]string) (Function, error) {
	object, err := readTree("function", s.Object)
	if err != nil {
		return Function{}, err
	}
	m := &maker{spec: s, fields: object.child("spec"), secrets: secrets}
	m.build = m.fields.child("build")
	f := Function{Name: s.name(), Project: s.Project, Namespace: s.Config.Namespace}
	if !nameRule.MatchString(f.Name) {
		m.fault("metadata.name", "Nuclio calls the function %.100q, which is not a name of at most 63 lower case letters, digits, - and .", f.Name)
	}
	f.Config = m.config(f, object)
	f.Secrets = m.hidden
	return f, errors.Join(m.faults...)
}

func (s Spec) name() string {
	name := s.Project + "-" + s.Name
	if s.Tag != "" && s.Tag != "latest" {
		name += "-" + s.Tag
	}
	return name
}

// maker holds the parts of one Function.
type maker struct {
	spec          Spec
	fields, build tree
	secrets       map[string]string
	hidden        []string
	faults        []error
}

func (m *maker) fault(field, format string, args ...any) {
	m.faults = append(m.faults, fmt.Errorf("%s: %w", field, fmt.Errorf(format, args...)))
}

// config follows MLRun's order: the function's base_spec or an empty configuration,
// then spec.config, then what is derived.
func (m *maker) config(f Function, object tree) tree {
	config := m.base()
	m.overlay(config)
	commands := m.commands(config)

	metadata := config.child("metadata")
	metadata["name"] = f.Name
	if f.Namespace != "" {
		metadata["namespace"] = f.Namespace
	}
	labels := metadata.child("labels")
	maps.Copy(labels, object.child("metadata").child("labels"))
	labels[labelClass], labels[LabelProject] = m.spec.Kind, f.Project
	if m.spec.Tag != "" {
		labels[labelTag] = m.spec.Tag
	}
	if origin := m.build.text("code_origin"); origin != "" {
		metadata.child("annotations")[generatedBy] = "function generated from " + withoutUserInfo(origin)
	}
	spec := config.child("spec")
	spec["runtime"] = m.runtime()
	if spec["handler"] == nil {
		spec["handler"] = orElse(m.fields.text("function_handler"), defaultHandler)
	}
	build := spec.child("build")
	build["commands"] = commands
	if m.spec.BaseImage != "" {
		build["baseImage"] = m.spec.BaseImage
	}
	m.buildOptions(spec, build)
	m.code(spec, build)
	m.runSettings(spec)
	m.hidden = append(m.hidden, m.spec.Hidden...)
	return config
}

// base returns the configuration to begin with.
func (m *maker) base() tree {
	if given := m.fields.child("base_spec"); len(given) > 0 {
		for _, path := range [][]string{{"metadata"}, {"metadata", "labels"}, {"metadata", "annotations"}, {"spec"}, {"spec", "build"}} {
			if !given.holds(path) {
				m.fault("spec.base_spec."+strings.Join(path, "."), "must be an object")
			}
		}
		return given
	}
	return tree{
		"apiVersion": "nuclio.io/v1",
		"kind":       "Function",
		"spec":       map[string]any{"build": map[string]any{"noBaseImagesPull": true}},
	}
}

// overlay puts spec.config, whose keys are paths ("spec.triggers.http"), on top. As in
// MLRun a list is added to the one that is there.
func (m *maker) overlay(config tree) {
	for _, path := range sortedKeys(m.fields.child("config")) {
		if err := config.set(splitPath(path), m.fields.child("config")[path]); err != nil {
			m.fault(fmt.Sprintf("spec.config[%.100q]", path), "%w", err)
		}
	}
}

// buildOptions are the smaller settings of a build.
func (m *maker) buildOptions(spec, build tree) {
	if m.fields["no_cache"] == true {
		build["noCache"] = true
	}
	if m.fields["base_image_pull"] == true {
		build["noBaseImagesPull"] = false
	}
	if secret := m.pullSecret(); secret != "" {
		spec["imagePullSecrets"] = secret
	}
	if flags := Flags(m.build.text("extra_args")); len(flags) > 0 {
		build["flags"] = texts(flags)
	}
}

// pullSecret prefers what the function says to what is configured, and the secret for
// pulling to that for building.
func (m *maker) pullSecret() string {
	c := m.spec.Config
	pull, own := m.fields.textOr("image_pull_secret", c.ImagePullSecret)
	if own && pull != c.ImagePullSecret {
		return pull
	}
	secret, own := m.build.textOr("secret", c.BuildSecret)
	if own && secret != c.BuildSecret {
		return secret
	}
	return orElse(pull, secret)
}

// Flags cuts extra_args into flags, each with its values: "--build-arg A=b --x" is
// "--build-arg A=b" and "--x". Nothing is checked: Nuclio takes what its builder does.
func Flags(extraArgs string) []string {
	var flags []string
	for word := range strings.FieldsSeq(extraArgs) {
		if len(flags) == 0 || strings.HasPrefix(word, "--") {
			flags = append(flags, word)
			continue
		}
		flags[len(flags)-1] += " " + word
	}
	return flags
}

// Shown returns the configuration for people: a value that is a secret is "***", and
// every other text is what clean makes of it.
func (f Function) Shown(clean func(string) string) map[string]any {
	shown, _ := transform(f.Config, func(text string) string {
		if slices.Contains(f.Secrets, text) {
			return "***"
		}
		return clean(text)
	}).(map[string]any)
	return shown
}

// withoutUserInfo cuts credentials off a URL.
func withoutUserInfo(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.User == nil {
		return text
	}
	u.User = nil
	return u.String()
}

func orElse(text, other string) string {
	if text != "" {
		return text
	}
	return other
}

// Status is how far Nuclio is with a function.
type Status struct {
	// State is Nuclio's word for it: "building", "ready".
	State string
	// Done says that the function is deployed.
	Done bool
	// Image is the one that Nuclio built. Empty: it does not say.
	Image string
	// Log are the lines that Nuclio keeps with the function, which may hold secrets.
	Log []string
}
