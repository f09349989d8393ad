// Package function resolves an MLRun function object and the configuration into a
// builder.Request: whether a build is needed at all, from which base, to which
// target, with which commands, requirements, source, build arguments and extra text.
//
// The rules are MLRun's own, of its client and its server together. The code is
// pure: nothing is looked up, and no input is changed. Where the behaviour of MLRun
// is a known fault (extra text that is lost, images compared by substring, lists
// that grow with every deploy) the sane behaviour is taken instead. testdata holds
// MLRun's behaviour case by case, and docs/mlrun-compat.md the differences.
//
// Fields with no effect on the image are accepted as they are: code_origin,
// origin_filename, registry and auto_build of spec.build, and functionSourceCode,
// which must be base64 and reaches the function at run time. Unknown keys are ignored.
package function

import (
	"encoding/json"
	"slices"
	"time"

	"kiln/builder"
)

// Input is what a request brings. Resolve changes none of it.
type Input struct {
	// RequestID becomes Request.ID.
	RequestID string
	// Function is the MLRun function object: kind, metadata, spec.
	Function json.RawMessage
	// WithMLRun asks for mlrun in the image. Nil: spec.build.with_mlrun decides, else
	// Config.WithMLRun does, which by default is the rule of MLRun's client: only when
	// spec.build.base_image names an image that is not one of MLRun's, and always for
	// kind spark.
	WithMLRun *bool
	// SkipDeployed answers "no build" when spec.image is set, which a project's default
	// image does not do. It wins over ForceBuild.
	SkipDeployed bool
	// ForceBuild builds even when there is nothing to add.
	ForceBuild bool
	// MLRunVersionSpecifier is the requirement for mlrun ("mlrun[complete]==1.7.0").
	MLRunVersionSpecifier string
	// BuilderEnv are build arguments; they win over spec.build.builder_env by name.
	BuilderEnv map[string]string
	// Timeout is a Go duration; empty means the configured default of the builder.
	Timeout string
	// Platform is os/arch[/variant]; empty means the configured default of the builder.
	Platform string
	// NoCache builds again even when an identical build is finished.
	NoCache bool
	// LayerOrder is "auto" (or empty), "source_first" or "source_last".
	LayerOrder string
	// Secrets are the names of the project's secrets that the build may see. Nil: all.
	Secrets []string
	// ClientVersion and ClientPythonVersion are those of MLRun's client. The version goes
	// before Config.MLRunVersion.
	ClientVersion, ClientPythonVersion string
}

// Resolve applies every rule to in. The error is a *builder.Error of
// KindInvalidRequest that joins all faults, one line each, and every line names the
// JSON path inside the function object or the field of the request it is about.
//
// A request without a build carries the identity of the function and the Decision,
// and nothing else. What a request with a build holds passes dockerfile.Render.
func Resolve(c Config, in Input) (builder.Request, error) {
	var f faults
	f.join(c.Validate())
	c = c.withDefaults()
	r := resolver{config: c, in: in, fn: readFunction(in.Function, &f), faults: &f, notes: &notes{}}
	var known bool
	r.project, known = c.Projects[r.fn.project]
	r.fn.enrich(r.project, known)
	req := r.request()
	if err := f.err(); err != nil {
		return builder.Request{}, &builder.Error{Kind: builder.KindInvalidRequest, Op: "checking the request", Err: err}
	}
	return req, nil
}

// resolver holds the parts of one Resolve.
type resolver struct {
	config  Config
	in      Input
	fn      spec
	project Project
	faults  *faults
	notes   *notes
}

func (r resolver) request() builder.Request {
	req := builder.Request{
		ID:       r.in.RequestID,
		Project:  r.fn.project,
		Name:     r.fn.name,
		Tag:      r.fn.tag,
		Timeout:  r.timeout(),
		Platform: r.platform(),
		Rebuild:  r.in.ForceBuild || r.in.NoCache,
	}
	args := r.buildArgs()
	specifier := r.specifier()
	r.layerOrder()
	r.checkVersions()
	if !r.fn.readable {
		return req
	}
	switch r.fn.class() {
	case classBuilt:
		r.resolveBuilt(&req, args, specifier)
	case classNuclio:
		r.resolveNuclio(&req, args, specifier)
	case classLocal:
		req.Decision = r.local()
	default:
		r.faults.add("kind", "%q is not supported; an image can be built for %s", r.fn.kind, builtKinds)
	}
	return req
}

// resolveBuilt decides about a function of a kind that is built here.
func (r resolver) resolveBuilt(req *builder.Request, args []builder.Arg, specifier string) {
	base := r.base()
	add := r.additions(base, specifier)
	if d, ok := r.notNeeded(add); ok {
		req.Decision = d
		return
	}
	if base.text == "" {
		r.needSparkImage()
	}
	r.faults.check("spec.build.functionSourceCode", checkCode(r.fn.code))
	req.Base = base.ref
	req.Target, req.UserImage = r.target()
	req.Commands = add.commands
	req.Requirements = add.requirements
	if req.Source = add.source; req.Source != nil && checkSource(r.fn.source) == nil {
		r.faults.check(sourcePath, checkFetched(r.fn.source))
	}
	req.BuildArgs, req.Flags = r.extraArgs(args)
	req.Extra = add.extra
	req.Secrets = slices.Clone(r.in.Secrets)
	req.RegistrySecret = r.registrySecret(req.Target)
	req.Verbose = r.fn.verbose
	req.Scheduling = r.scheduling()
	req.Decision = builder.Decision{Build: true, Reason: r.whyBuild(base, add) + r.notes.String()}
}

func (r resolver) timeout() time.Duration {
	if r.in.Timeout == "" {
		return 0
	}
	d, err := time.ParseDuration(r.in.Timeout)
	switch {
	case err != nil:
		r.faults.add("options.timeout", "%.80q is not a duration such as 30m or 1h15m", r.in.Timeout)
	case d <= 0:
		r.faults.add("options.timeout", "%s is not more than zero", d)
	case d > r.config.MaxTimeout:
		r.faults.add("options.timeout", "%s is more than the limit of %s", d, r.config.MaxTimeout)
	}
	return d
}

func (r resolver) platform() string {
	if p := r.in.Platform; p != "" && !platformPattern.MatchString(p) {
		r.faults.add("options.platform", "%.80q is not of the form os/arch or os/arch/variant, such as linux/arm64", p)
	}
	return r.in.Platform
}
