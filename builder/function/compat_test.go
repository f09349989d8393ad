package function_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/mlrun-compat.md")

// followed are the rules that Kiln and MLRun have in common, by section.
func followed() map[string][]string {
	return map[string][]string{
		inFields: {
			"kind, metadata.name, project and tag, spec.image and spec.build. Unknown keys are ignored; `project` defaults to `default`, `tag` to `latest`, names are normalised (`My_Func 1` is `my-func-1`).",
			"`spec.build`: functionSourceCode, source, load_source_on_run, source_code_target_dir (and its old name `spec.clone_target_dir`), image, base_image, commands, requirements, extra, extra_args, builder_env, secret, with_mlrun. code_origin, origin_filename, registry and auto_build have no effect on an image.",
			"`requirements` is a list. A text, which is a path on the client, is refused.",
			"Inline code is checked to be base64 when something is built, and never put into the image.",
			"`verbose` asks for a detailed log of the executor.",
		},
		inDecision: {
			"A build is needed for commands, requirements, a source that is loaded at build time, and for mlrun on a base without it. Nothing of that: the function's image, else base_image, else the image of its kind is used as it is.",
			"`skip_deployed` with an image needs no build, and wins over `force_build`. Spark functions without source, commands and extra, and dask functions that are not remote, count as deployed.",
			"`force_build` builds when there is nothing to add.",
			"`with_mlrun` that nobody sets: only for a base_image that is not one of MLRun's, and always for kind spark, which is the rule of MLRun's client (`mlrun.with_mlrun` can say always or never). On an image of MLRun's that has mlrun it is off.",
			"Inline code, extra_args and builder_env alone are no reason to build.",
			"No image at all, no default of the kind and nothing to add is refused.",
			"An application that has an image is built when it is forced only; local and handler are never built.",
		},
		inProject: {
			"`mlrun.projects_file` holds defaults by project: default_image, default_requirements, source with load_source_on_run and source_code_target_dir, mountdir, default_function_node_selector, service accounts.",
			"The default image is used where the function has none; default requirements are added once; a source `.` or `./` is the project's, or none when the project is mounted or has no source.",
			"A source `.` of a project that nobody knows is refused.",
		},
		inBase: {
			"base_image, else spec.image, else the project's default, the image of the kind, `mlrun/mlrun`.",
			"Images of MLRun's without a tag get `images_tag`, else the version of the client, else that of the server (`mlrun.server_version`; unset, they stand for latest, and the reason of the build says so). `0.0.0+unstable` is `unstable`; clients with Python 3.7 get `-py37` for 1.3, 1.4 and unstable versions.",
			"`images_registry` and `vendor_images_registry` are put in front of images that `images_to_enrich_registry` matches.",
			"A leading dot stands for the configured registry and repository.",
		},
		inTarget: {
			"Without spec.build.image: `<registry>/<repository or mlrun>/func-{project}-{name}:<tag>`, by a template.",
			"A leading dot stands for the registry and repository; without a registry it is refused. `https://` is cut off.",
			"Below the configured registry and repository, names must begin with the prefix of the function; everywhere else they are free.",
			"A name without registry is Docker Hub's.",
		},
		inRequirements: {
			"Lines go to pip as they are: extras, markers, addresses, quotes, flags, `${VARIABLES}`. An entry with a line break is two lines.",
			"mlrun on another base: `python -m pip install --upgrade pip~=23.0` after the commands, and mlrun first among the requirements, in one pip install. A command that matches `pip install --upgrade …pip…` or `pip install …mlrun…` takes the place of either.",
			"mlrun is the specifier of the request, else the configured one, else `mlrun[complete]==<version of the client, else of the server>`; unstable versions are the development branch.",
			"On a base of MLRun's with requirements, mlrun is held at the version of the tag, when that is a release or candidate. Otherwise nothing is added, and the reason of the build says so.",
		},
		inDockerfile: {
			"Commands, then requirements, then extra, which is Dockerfile text as it is. One RUN per command, run by the base image's shell and user.",
			"No USER, WORKDIR, ENTRYPOINT or CMD of its own; the requirements file stays out of the image.",
			"Configured build arguments (`ARG name=value`) are in every Dockerfile.",
		},
		inSource: {
			"A source begins with `git://`, has a file suffix in its last part, or is `.`. Kiln takes `git+https://`, `git+ssh://`, `git@host:path` and uploaded contexts in addition.",
			"It goes to source_code_target_dir: absolute as it is, relative below `/home/mlrun_code`, which is also the default. PYTHONPATH is that folder.",
			"A relative path cannot be loaded at build time; an application's source always is, and a Spark operator's may not be loaded on run.",
			"The owner is root, unless one is configured (`mlrun.source_owner`, security context enrichment in MLRun).",
		},
		inArgs: {
			"builder_env of the function, with that of the request on top, becomes build arguments, and nothing at run time.",
			"extra_args begins with a flag; a flag may have several values; `--build-arg` needs NAME=value. The same argument with the same value is dropped, with another value refused.",
		},
		inSecrets: {
			"spec.build.secret names the credentials of a build; else the configured ones are used where the target is at the configured registry.",
			"Keys of project secrets that begin with `mlrun.` are hidden, and builder_env of the same name wins.",
		},
		inEngine: {
			"node_name, affinity, tolerations, priority_class_name; the node selector of the configuration, the project and the function, later ones on top and empty values dropped; the service account of the function, the project or the configuration, within those that the project allows.",
		},
		inStates: {
			"`deploying`, `pending` and `running` are `build.started`; `ready` is `build.completed`, with `built`, `reused` or `not_needed`; `error` is `build.failed`.",
		},
		inNuclio: {
			"Kinds nuclio, remote and serving are Nuclio's to build: nothing is built here, and Nuclio gets a configuration, which `kiln plan` shows. Behind `nuclio.dashboard_url` it is deployed, and the request ends with what Nuclio says.",
			"The base is spec.config's, else spec.image, else base_image, else the project's, completed as every base; the image of the kind only for a function that adds nothing. Without any Nuclio takes the image of the runtime.",
			"The requirements are one pip command after the commands, each a word for the shell; `-r` is a flag and its path a word. Commands of spec.config go before those of spec.build. On an image of MLRun's with requirements, mlrun is held at its version.",
			"extra_args are flags of the build, each with its values, unchecked. `no_cache` and inline code are handed on.",
			"`git://` (with a branch or a reference), `s3://`, `http(s)://` and `v3io(s)://` sources are code entries with the credentials of builder_env, else of the project's secrets; others are refused. `a/b#module:function` as function_handler names the folder.",
			"The secret for pulling that differs from its default wins, then the one for building, then the defaults.",
			"The runtime is `python:3.9`; for clients before 1.3 or with Python 3.7 `python:3.7`, and with a Nuclio before 1.6 `python:3.6`.",
		},
		inImages: {
			"`kiln spark-image` makes `.spark-job-default-image`, with a GPU `.spark-job-default-image-cuda`, or `.remote-spark-default-image`, of `mlrun.spark_app_image` with `mlrun.spark_app_image_tag`; remote Spark takes `shell` where it says `spark-app`. Another version of Spark or of mlrun is another image, and the same one is used again.",
			"A Spark function without a base starts from that image, with `-cuda` when it has limits for GPUs itself. Where none is configured it is refused.",
			"`kiln build --project-image` makes the project's default image, else `.mlrun-project-image-<name>`, of the default base, with the project's source unless it is loaded when functions run. builder_env and extra_args are used once.",
		},
	}
}

const compatHead = `# Coming from MLRun

Kiln decides about a function object as MLRun's client and server do together, so that a function that MLRun can build
is published to Kiln as it is. This page lists the rules: those that are the same, those that Kiln does better on
purpose, and those that mean nothing here, each with its reason.

It is written from the table that the tests use: facts about MLRun (1.7 to 1.8, and what is known of later versions) are
run against Kiln, and one that differs without a rule of this page fails the build. Other facts in the same form can be
checked with ` + "`KILN_MLRUN_CASES=<file> go test -v -run Kiln ./builder/function`" + `.
`

// compat renders docs/mlrun-compat.md.
func compat() string {
	var b strings.Builder
	b.WriteString(compatHead)
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, section := range sections() {
		fmt.Fprintf(&b, "\n## %s\n\n| | rule | in Kiln |\n|---|---|---|\n", section)
		for _, rule := range followed()[section] {
			fmt.Fprintf(&b, "| same | %s | |\n", cell.Replace(rule))
		}
		for _, v := range []verdict{better, notApplicable} {
			for _, d := range deviations() {
				if d.Section == section && d.Verdict == v {
					fmt.Fprintf(&b, "| %s | MLRun: %s | %s |\n", v, cell.Replace(d.Rule), cell.Replace(d.Reason))
				}
			}
		}
	}
	return b.String()
}

// TestCompatPageIsUpToDate holds docs/mlrun-compat.md to the rules of the tests.
func TestCompatPageIsUpToDate(t *testing.T) {
	t.Parallel()
	const file = "../../docs/mlrun-compat.md"
	got := compat()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("go test ./builder/function -update writes it (-want +got):\n%s", diff)
	}
	names := map[string]bool{}
	for _, d := range deviations() {
		if names[d.Rule] || d.Reason == "" || d.Verdict != better && d.Verdict != notApplicable || len(followed()[d.Section]) == 0 {
			t.Errorf("deviation %q has no section, verdict or reason of its own", d.Rule)
		}
		names[d.Rule] = true
	}
}
