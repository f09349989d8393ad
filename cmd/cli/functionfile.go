package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"kiln/events"
)

// RequestFlags make a build request of a function file.
type RequestFlags struct {
	File         string            `env:"-" short:"f" placeholder:"FILE" help:"Function as YAML or JSON, as MLRun exports it; - is standard input. With --project-image a project."`
	WithMLRun    *bool             `env:"-" name:"with-mlrun" negatable:"" help:"Put mlrun into the image, or do not. Defaults to what the function and its base image say."`
	Force        bool              `env:"-" help:"Build even when nothing seems to be needed."`
	SkipDeployed bool              `env:"-" help:"Build nothing when the function has an image."`
	NoCache      bool              `env:"-" help:"Build again even when an identical build is finished."`
	MLRunVersion string            `env:"-" name:"mlrun-version" placeholder:"TEXT" help:"Requirement for mlrun, for example mlrun==1.7.0."`
	Env          map[string]string `env:"-" placeholder:"NAME=VALUE" help:"Build arguments (builder_env); values of names such as TOKEN or PASSWORD are kept out of logs."`
	BuildTimeout string            `env:"-" placeholder:"DURATION" help:"Time limit of the build, for example 1h."`
	LayerOrder   string            `env:"-" placeholder:"ORDER" help:"Where the source comes among the layers: auto, source_first or source_last."`
	BuildOn      string            `env:"-" name:"platform" placeholder:"OS/ARCH" help:"Platform of the image."`
	LocalSource  string            `env:"-" name:"source" placeholder:"PATH" help:"Folder, or tar, tar.gz or zip archive, whose content goes into the image as the function's source. A path in spec.build.source is packed and uploaded just so, relative to the function's file. A .dockerignore in the folder is honoured."`
	projectImageFlags
}

// Request reads the file and puts the flags on top of what it says.
func (r RequestFlags) Request(s Streams) (events.BuildRequest, error) {
	request, err := r.read(s)
	if err != nil {
		return events.BuildRequest{}, Usage(err)
	}
	if r.WithMLRun != nil {
		request.WithMLRun = new(events.Flag(*r.WithMLRun))
	}
	request.ForceBuild = request.ForceBuild || r.Force
	request.SkipDeployed = request.SkipDeployed || r.SkipDeployed
	request.Options.NoCache = request.Options.NoCache || r.NoCache
	if r.MLRunVersion != "" {
		request.MLRunVersionSpecifier = r.MLRunVersion
	}
	if r.BuildTimeout != "" {
		request.Options.Timeout = r.BuildTimeout
	}
	if r.LayerOrder != "" {
		request.Options.LayerOrder = r.LayerOrder
	}
	if r.BuildOn != "" {
		request.Options.Platform = r.BuildOn
	}
	for name, value := range r.Env {
		if request.BuilderEnv == nil {
			request.BuilderEnv = map[string]string{}
		}
		request.BuilderEnv[name] = value
	}
	return request, nil
}

// read takes the function from the file, or makes the one that a project's image is
// built of.
func (r RequestFlags) read(s Streams) (events.BuildRequest, error) {
	var raw []byte
	var err error
	if r.File != "" {
		if raw, err = readInput(r.File, s.In); err != nil {
			return events.BuildRequest{}, err
		}
	}
	if r.ProjectImage {
		return r.projectImage(r.File, raw)
	}
	if err := r.unused(); err != nil {
		return events.BuildRequest{}, err
	}
	if r.File == "" {
		return events.BuildRequest{}, errors.New("missing flag: --file=FILE, the function (or --project-image)")
	}
	request, err := parseFunction(raw)
	if err != nil {
		return request, fmt.Errorf("%s: %w", r.File, err)
	}
	return request, nil
}

func readInput(name string, stdin io.Reader) ([]byte, error) {
	var raw []byte
	var err error
	if name == "-" {
		raw, err = io.ReadAll(io.LimitReader(stdin, events.MaxData+1))
	} else {
		raw, err = os.ReadFile(name) //nolint:gosec // the user names the file
	}
	if err != nil {
		return nil, fmt.Errorf("read function file: %w", err)
	}
	if len(raw) > events.MaxData {
		return nil, fmt.Errorf("%s is larger than 1 MiB", name)
	}
	return raw, nil
}

// parseFunction reads YAML or JSON: a function object or a whole request. It is
// checked as the worker will check it.
func parseFunction(raw []byte) (events.BuildRequest, error) {
	doc, err := oneDocument(raw)
	if err != nil {
		return events.BuildRequest{}, err
	}
	// The codec takes a bare message just like this.
	e, err := events.Decode(events.Message{Subject: string(events.TypeBuildRequested), Data: doc, FallbackID: "file"})
	if err != nil {
		return events.BuildRequest{}, Describe(err)
	}
	request, ok := e.Data.(*events.BuildRequest)
	if !ok {
		return events.BuildRequest{}, errors.New("the file is not a function")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, request.Function); err == nil {
		request.Function = compact.Bytes()
	}
	return *request, nil
}

// oneDocument returns YAML or JSON as JSON.
func oneDocument(raw []byte) ([]byte, error) {
	if severalDocuments(raw) {
		return nil, errors.New("the file holds several YAML documents; give one")
	}
	doc, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, fmt.Errorf("parse YAML: %w", err)
	}
	return doc, nil
}

// severalDocuments reports whether a document separator follows some content.
func severalDocuments(raw []byte) bool {
	content := false
	for line := range bytes.Lines(raw) {
		switch {
		case bytes.HasPrefix(line, []byte("---")) && content:
			return true
		case bytes.HasPrefix(line, []byte("---")), bytes.HasPrefix(line, []byte("#")), len(bytes.TrimSpace(line)) == 0:
		default:
			content = true
		}
	}
	return false
}

// Describe lists every violation on a line of its own.
func Describe(err error) error {
	broken, ok := errors.AsType[*events.DecodeError](err)
	if !ok || len(broken.Violations) == 0 {
		return err
	}
	lines := []string{"the function is not valid:"}
	for _, v := range broken.Violations {
		lines = append(lines, cmp.Or(v.Path, "/")+": "+v.Message)
	}
	return errors.New(strings.Join(lines, "\n  "))
}
