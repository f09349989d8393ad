package function_test

import (
	"encoding/json"
	"fmt"
	"strings"

	"kiln/builder/function"
)

// checkHelper checks the rows of MLRun's helper functions by what they do to a
// request. Rows are told apart by their columns.
func checkHelper(c mlrunCase) []difference {
	var d diffs
	rows, ok := get[[]map[string]json.RawMessage](c.want, "rows")
	if !ok {
		panic(shapeError{"there are no rows"})
	}
	for i, keys := range rows {
		row := newFacts(fmt.Sprintf("rows[%d]", i), keys)
		switch {
		case row.has("repository"):
			d.registryRow(row)
		case row.has("suffix"):
			d.suffixRow(row)
		case row.has("secret"):
			d.secretRow(row)
		case row.has("pip_installable"):
			d.tagRow(row)
		case row.has("merged"):
			d.argsRow(row)
		case row.has("normalized"):
			d.nameRow(row)
		case row.has("is_ecr"):
			row.readAll()
			d.add("rows.is_ecr", string(keys["registry"]), "found by host in builder/registry")
		}
		for _, f := range row.unread() {
			panic(shapeError{"nobody knows " + f.path})
		}
	}
	return d.list
}

func orEmpty(f *facts, key string) string {
	text, _ := get[*string](f, key)
	return deref(text)
}

// registryRow: the default target is below the registry and its repository.
func (d *diffs) registryRow(row *facts) {
	configured := orEmpty(row, "docker_registry")
	host, repository := orEmpty(row, "registry"), orEmpty(row, "repository")
	b := build{config: function.Config{Registry: configured}}
	b.req, b.err = function.Resolve(b.config, function.Input{Function: named(map[string]any{
		"spec": map[string]any{"image": "a/b:1", "build": map[string]any{"commands": []string{"x"}}},
	})})
	if configured == "" {
		if b.outcome() != failed || !strings.Contains(b.err.Error(), "spec.build.image:") {
			d.add("registry", "refused, since there is none", describe(b))
		}
		return
	}
	if host == "" {
		host = "index.docker.io"
	}
	if repository == "" {
		repository = "mlrun"
	}
	if want := fullName(host + "/" + repository + "/func-my-proj-my-func:latest"); b.err != nil || b.req.Target != want {
		d.add("registry", want, describe(b)+" "+b.req.Target)
	}
}

// suffixRow: the tag that MLRun's images get for a client.
func (d *diffs) suffixRow(row *facts) {
	version, python, suffix := orEmpty(row, "mlrun_version"), orEmpty(row, "python_version"), orEmpty(row, "suffix")
	req, err := function.Resolve(function.Config{Registry: casesRegistry}, function.Input{
		ClientVersion: version, ClientPythonVersion: python,
		Function: named(map[string]any{"spec": map[string]any{"build": map[string]any{"base_image": "mlrun/mlrun", "commands": []string{"x"}}}}),
	})
	bare := strings.TrimSuffix(req.Base, "-py37")
	if err != nil || bare+suffix != req.Base || !strings.HasPrefix(bare, "mlrun/mlrun:") {
		d.add("suffix", version+" "+python+" "+suffix, fmt.Sprint(req.Base, err))
	}
}

// secretRow: the credentials of a build.
func (d *diffs) secretRow(row *facts) {
	config := function.Config{Registry: casesRegistry, RegistrySecret: orEmpty(row, "docker_registry_secret")}
	if registry := orEmpty(row, "docker_registry"); registry != "" {
		config.Registry = registry
	}
	req, err := function.Resolve(config, function.Input{Function: named(map[string]any{"spec": map[string]any{"image": "a/b:1", "build": map[string]any{
		"commands": []string{"x"}, "image": orEmpty(row, "image"), "secret": orEmpty(row, "function_secret"),
	}}})})
	if want := orEmpty(row, "secret"); err != nil || req.RegistrySecret != want {
		d.add("secret", want, fmt.Sprint(req.RegistrySecret, err))
	}
}

// tagRow: which images of MLRun's hold mlrun at their version while pip installs.
func (d *diffs) tagRow(row *facts) {
	image, tag := orEmpty(row, "image"), orEmpty(row, "tag")
	installable, _ := get[bool](row, "pip_installable")
	// The image's name is not what the row is about.
	full := strings.Replace(image, "mlrun@", "mlrun/mlrun@", 1)
	req, err := function.Resolve(function.Config{Registry: casesRegistry}, function.Input{
		Function: named(map[string]any{"spec": map[string]any{"build": map[string]any{"base_image": full, "requirements": []string{"a"}}}}),
	})
	want := []string{"a"}
	if installable {
		want = []string{"mlrun[complete]==" + tag, "a"}
	}
	if err != nil {
		d.add("tag.reference", image, err)
		return
	}
	d.equal("tag", want, req.Requirements)
}

// argsRow: what extra_args add to what is there.
func (d *diffs) argsRow(row *facts) {
	extra := orEmpty(row, "extra_args")
	env := map[string]string{}
	args, _ := get[[]string](row, "args")
	for i, arg := range args {
		if arg == "--build-arg" {
			key, value, _ := strings.Cut(args[i+1], "=")
			env[key] = value
		}
	}
	b := build{}
	b.req, b.err = function.Resolve(function.Config{Registry: casesRegistry}, function.Input{BuilderEnv: env, Function: named(map[string]any{
		"spec": map[string]any{"image": "a/b:1", "build": map[string]any{"commands": []string{"x"}, "extra_args": extra}},
	})})
	if b.err != nil {
		row.readAll()
		d.add("args.refused", extra, describe(b))
		return
	}
	var want, got []string
	merged, _ := get[[]string](row, "merged")
	for i, arg := range merged {
		if arg == "--build-arg" {
			want = append(want, merged[i+1])
		}
	}
	for _, arg := range b.req.BuildArgs {
		got = append(got, arg.Name+"="+arg.Value)
	}
	d.equal("args", want, got)
}

func (d *diffs) nameRow(row *facts) {
	name := orEmpty(row, "name")
	req, err := function.Resolve(function.Config{}, function.Input{Function: named(map[string]any{
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"image": "a/b:1"},
	})})
	if want := orEmpty(row, "normalized"); err != nil || req.Name != want {
		d.add("name", want, fmt.Sprint(req.Name, err))
	}
}
