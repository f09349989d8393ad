package function_test

import (
	"regexp"
	"slices"
	"strings"

	"kiln/builder/kaniko"
)

func sourceDeviations() []deviation {
	return []deviation{
		{
			Section: inSource, Rule: "The source is the executor's context, or an ADD of an address, a volume or an unzip in the base image; a commit is taken for a branch.",
			Verdict: better, Reason: "Kiln fetches branches, tags, commits and archives itself, pins them by content, unpacks them outside of the image and copies the files in with their owner.",
			Covers: func(_ mlrunCase, d difference) bool {
				return isField(d, "context") && strings.HasPrefix(d.Got, "fetched by Kiln from ")
			},
		},
		{
			Section: inSource, Rule: "A path is taken for a source, and looked for in a context where nothing is.",
			Verdict: better, Reason: "It is refused, and `kiln build` uploads local folders and archives.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "source.path", "requires_build") && strings.HasPrefix(sourceOf(c), "/") && strings.Contains(d.Got, "spec.build.source:")
			},
		},
	}
}

// sourceOf returns the source of the function, also when a setter of the client puts
// it there.
func sourceOf(c mlrunCase) string {
	calls, _ := get[[]call](c.in, "calls")
	for _, call := range calls {
		if source, ok := call.Args["source"].(string); ok {
			return source
		}
	}
	return c.build("source")
}

// retryFlags are those that both MLRun and Kiln give the executor themselves.
var retryFlags = regexp.MustCompile(`--(?:push-retry|image-fs-extract-retry)\b`)

// refusedFlag finds the refusals of flags, as apart from those of their values.
var refusedFlag = regexp.MustCompile(`spec\.build\.extra_args: --\S+ (?:is not a flag of the executor|cannot be set by a request)`)

// flagIsRefused reports whether Kiln takes the flag at all.
func flagIsRefused(flag string) bool {
	_, _, err := kaniko.ParseExtraArgs(flag)
	return err != nil && refusedFlag.MatchString("spec.build.extra_args: "+err.Error())
}

func argDeviations() []deviation {
	return []deviation{
		{
			Section: inArgs, Rule: "Any word that begins with -- is handed to the executor as a flag, known or not, TLS and context included.",
			Verdict: better, Reason: "Flags that the pinned executor lacks are refused, and so are those that Kiln or its operator decides about, each with what to do instead.",
			Covers: func(c mlrunCase, d difference) bool {
				flag, ok := strings.CutPrefix(d.Field, "kaniko_args.")
				return isField(d, "args.refused") && refusedFlag.MatchString(d.Got) || ok && strings.Contains(c.build("extra_args"), flag) && flagIsRefused(flag)
			},
		},
		{
			Section: inArgs, Rule: "Values of --build-arg are letters, digits and underscores only.",
			Verdict: better, Reason: "Any value: extra_args is split as a shell does it, with quotes.",
			Covers: func(c mlrunCase, d difference) bool {
				text, _ := get[string](c.want, "error")
				return isField(d, "result") && strings.Contains(text, "Invalid arguments format") && strings.HasPrefix(d.Got, string(started))
			},
		},
		{
			Section: inArgs, Rule: "A flag that MLRun sets itself is dropped in silence.",
			Verdict: better, Reason: "The retries are the user's to set, and the last one counts.",
			Covers: func(c mlrunCase, d difference) bool {
				return retryFlags.MatchString(d.Field) && retryFlags.MatchString(c.build("extra_args"))
			},
		},
		{
			Section: inArgs, Rule: "A --build-arg that contradicts builder_env is found only where it contradicts the first entry.",
			Verdict: better, Reason: "It is checked against all of them.",
			Covers: func(c mlrunCase, d difference) bool {
				env, _ := get[map[string]string](c.in.object("request"), "builder_env")
				return isField(d, "result") && len(env) > 1 && strings.HasPrefix(d.Got, string(failed)) && strings.Contains(d.Got, "has a different value")
			},
		},
		{
			Section: inArgs, Rule: "With extra_args, a value of builder_env that holds = fails the build.",
			Verdict: better, Reason: "Values are values.",
			Covers: func(c mlrunCase, d difference) bool {
				text, _ := get[string](c.want, "error")
				return isField(d, "result") && strings.Contains(text, "values to unpack") && strings.HasPrefix(d.Got, string(started))
			},
		},
		{
			Section: inSecrets, Rule: "Every secret of the project becomes ARG and --build-arg KEY=$KEY, whose value the executor does not expand.",
			Verdict: better, Reason: "Commands see them as environment variables through secret mounts, and neither arguments, history nor layers have them; options.secrets chooses.",
			Covers: func(c mlrunCase, d difference) bool {
				return isField(d, "dockerfile.secret", "kaniko_args.secret") && strings.HasSuffix(d.Got, "secret mount")
			},
		},
	}
}

// olderVersion finds expectations about versions before the newest that is described.
var olderVersion = regexp.MustCompile(`^expect\.(?:[<>=]*\d|\w+_before$)`)

func foreignDeviations() []deviation {
	return []deviation{
		{
			Section: inSecrets, Rule: "Pull and push use plain HTTP or unchecked TLS whenever there is no registry secret (insecure modes auto, enabled, disabled).",
			Verdict: notApplicable, Reason: "How a registry is reached is configured by host (registry.insecure), and never follows from a missing secret.",
			Covers: field("kaniko_args.--insecure", "kaniko_args.--insecure-pull"),
		},
		{
			Section: inSecrets, Rule: "insecure_pull_registry_mode and insecure_push_registry_mode.",
			Verdict: notApplicable, Reason: "See above: by host.", Whole: true,
			Covers: field("case.config.httpdb.builder.insecure_pull_registry_mode", "case.config.httpdb.builder.insecure_push_registry_mode"),
		},
		{
			Section: inSecrets, Rule: "ECR is recognised by a substring of the host, and repositories are made by a shell in an init container.",
			Verdict: notApplicable, Reason: "Credentials and repositories of ECR are handled by host where registries are spoken to, apart from the function's rules.", Whole: true,
			Covers: field("rows.is_ecr"),
		},
		{
			Section: inSecrets, Rule: "The session of the caller is a credential for v3io sources.",
			Verdict: notApplicable, Reason: "A message has no session; V3IO_ACCESS_KEY of builder_env or of the project's secrets is used.",
			Covers: field("case.auth_info"),
		},
		{
			Section: inEngine, Rule: "The builder pod: names, labels, volumes, init containers, environment.",
			Verdict: notApplicable, Reason: "An engine of Kiln makes its own container or Job. What the function asks of scheduling is followed.",
			Covers: field("expect.pod", "expect.init_container"),
		},
		{
			Section: inEngine, Rule: "Requests of build pods come from default_function_pod_resources.",
			Verdict: notApplicable, Reason: "Resources of builds have settings of their own.", Whole: true,
			Covers: field("case.config.default_function_pod_resources"),
		},
		{
			Section: inEngine, Rule: "kaniko_image, its helper images and its retries are configured.",
			Verdict: notApplicable, Reason: "The executor is pinned with Kiln; retries can be set in extra_args.", Whole: true,
			Covers: func(c mlrunCase, d difference) bool {
				set := slices.ContainsFunc(slices.Collect(mapKeysOf(c.in.object("config"))), func(key string) bool { return strings.Contains(key, "kaniko_") })
				return isField(d, "case.config.httpdb.builder.kaniko_image", "case.config.httpdb.builder.kaniko_init_container_image",
					"case.config.httpdb.builder.kaniko_aws_cli_image", "case.config.httpdb.builder.kaniko_image_fs_extraction_retries",
					"case.config.httpdb.builder.kaniko_image_push_retry") || set && retryFlags.MatchString(d.Field)
			},
		},
		{
			Section: inEngine, Rule: "Buildah as another builder (1.13).",
			Verdict: notApplicable, Reason: "Kaniko builds. Arguments are passed by name, as MLRun does with Buildah.", Whole: true,
			Covers: func(_ mlrunCase, d difference) bool {
				return d.Field == "case.config" || isField(d, "case.config.httpdb.builder.builder_backend")
			},
		},
		{
			Section: inStates, Rule: "POST build/function and GET build/status.",
			Verdict: notApplicable, Reason: "A request is a message, and its end is build.completed or build.failed.", Whole: true,
			Covers: field("case.group"),
		},
		{
			Section: inStates, Rule: "Errors are HTTP 400 with a text and the class of an exception.",
			Verdict: notApplicable, Reason: "A refused request ends with build.failed{invalid_request}, whose message names every field at fault.",
			Covers: field("expect.error_type", "expect.http"),
		},
		{
			Section: inStates, Rule: "The client polls the state and prints the log in pieces.",
			Verdict: notApplicable, Reason: "Kiln publishes: the end of a build is an event, the log a stream.",
			Covers: func(c mlrunCase, d difference) bool {
				return c.group == "client-deploy" && isField(d, "case.server_response", "case.status_polls", "case.deploy_args",
					"expect.polls", "expect.printed", "expect.returns", "expect.state", "expect.spec_image", "expect.error", "expect.error_type")
			},
		},
		{
			Section: inStates, Rule: "A run without an image fails on the server, or for its code and source.",
			Verdict: better, Reason: "`run.failed` with `image_required`, at once. With auto_build the run waits for its image instead of polling for it, and what changed is built although spec.image is set ([runs.md](runs.md)).",
			Covers: func(c mlrunCase, d difference) bool {
				return c.group == "run" && isField(d, "expect.server_error", "expect.error", "expect.error_type")
			},
		},
		{
			Section: inFields, Rule: "workdir, subpath, handler and what else a project says about runs.",
			Verdict: notApplicable, Reason: "They are about running the function; MLRun puts no WORKDIR into images either (since 1.6).",
			Covers: field("case.project_spec"),
		},
		{
			Section: inFields, Rule: "What versions before the newest one did.",
			Verdict: notApplicable, Reason: "Kiln follows the newest.",
			Covers: func(c mlrunCase, d difference) bool { return c.group == "version" && olderVersion.MatchString(d.Field) },
		},
	}
}

func mapKeysOf(f *facts) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for key := range f.keys {
			if !yield(key) {
				return
			}
		}
	}
}
