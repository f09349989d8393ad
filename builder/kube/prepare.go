package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// Sources is what Prepare needs of builder.Sources.
type Sources interface {
	Fetch(ctx context.Context, url, version string, env map[string]string, dir *os.Root) error
}

// Opener returns Sources for the settings that the engine was given
// (Config.SourceSettings), and what closes them.
type Opener func(settings []byte) (sources Sources, closer io.Closer, err error)

// Prepare fills a build's workspace as the plan in the folder from asks: the
// Dockerfile, the files of the context and, by the sources that open returns, the code.
// It writes files of its own, since those of a mounted Secret are links. Lines for people
// go to log. Errors are of *builder.Error.
func Prepare(ctx context.Context, from, workspace *os.Root, open Opener, log io.Writer) error {
	raw, err := from.ReadFile(keyPlan)
	if err != nil {
		return unavailable("reading the plan", err)
	}
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return unavailable("reading the plan", err)
	}
	if err := writeFiles(workspace, d); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(log, "Wrote the Dockerfile and %d files of the context\n", len(d.Context))
	if d.Source == nil {
		return nil
	}
	_, _ = fmt.Fprintf(log, "Fetching the source, %s\n", kaniko.Clean(d.Source.Version))
	return fetch(ctx, from, workspace, path.Join(inWorkspace(kaniko.Context), builder.SourceDir), d.Source, d.Env, open)
}

// inWorkspace returns a path of the executor relative to the workspace.
func inWorkspace(name string) string { return strings.TrimPrefix(name, WorkspaceDir()+"/") }

func writeFiles(workspace *os.Root, d document) error {
	const op = "writing the build context"
	folder := inWorkspace(kaniko.Context)
	write := func(name string, data []byte, mode os.FileMode) error {
		if err := workspace.MkdirAll(path.Dir(name), 0o755); err != nil {
			return unavailable(op, err)
		}
		if err := workspace.WriteFile(name, data, 0o600); err != nil {
			return unavailable(op, err)
		}
		// Whatever the umask is.
		if err := workspace.Chmod(name, mode); err != nil {
			return unavailable(op, err)
		}
		return nil
	}
	if err := write(inWorkspace(kaniko.Dockerfile), []byte(d.Dockerfile), 0o644); err != nil {
		return err
	}
	if err := workspace.MkdirAll(folder, 0o755); err != nil {
		return unavailable(op, err)
	}
	for _, f := range d.Context {
		if !filepath.IsLocal(filepath.FromSlash(f.Name)) || path.Clean(f.Name) != f.Name || f.Name == "." {
			return builder.Errorf(builder.KindInvalidRequest, op, "%q is not a clean relative path", f.Name)
		}
		if err := write(path.Join(folder, f.Name), f.Data, os.FileMode(f.Mode).Perm()); err != nil {
			return err
		}
	}
	return nil
}

// fetch writes the source into a folder of the workspace; names says which files hold
// the variables for it.
func fetch(ctx context.Context, from, workspace *os.Root, folder string, s *source, names map[string]string, open Opener) error {
	const op = "fetching the source"
	env := make(map[string]string, len(names))
	for name, key := range names {
		value, err := from.ReadFile(key)
		if err != nil {
			return unavailable(op, err)
		}
		env[name] = string(value)
	}
	if err := workspace.MkdirAll(folder, 0o755); err != nil {
		return unavailable(op, err)
	}
	dir, err := workspace.OpenRoot(folder)
	if err != nil {
		return unavailable(op, err)
	}
	defer dir.Close()
	sources, closer, err := open(s.Settings)
	if err != nil {
		return unavailable(op, err)
	}
	defer closer.Close()
	return sources.Fetch(ctx, s.URL, s.Version, env, dir)
}

// unavailable is the error of something that the cluster should have done.
func unavailable(op string, err error) *builder.Error {
	return &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
}

// failure is what the container "context" says of its error, in its termination message.
type failure struct {
	Kind    builder.Kind `json:"kind"`
	Op      string       `json:"op"`
	Message string       `json:"message"`
}

// maxFailure keeps the message below what Kubernetes passes on: 4096 bytes.
const maxFailure = 1500

// Failure encodes an error of Prepare for the file TerminationLog, where the Engine
// reads it.
func Failure(err error) []byte {
	f := failure{Kind: builder.KindOf(err), Op: "preparing the build", Message: err.Error()}
	if e, ok := errors.AsType[*builder.Error](err); ok && e.Err != nil {
		f.Op, f.Message = e.Op, e.Err.Error()
	}
	f.Message, f.Op = short(f.Message, maxFailure), short(f.Op, 200)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(f); err != nil {
		return nil
	}
	return out.Bytes()
}

// short is a text in one line of at most so many bytes.
func short(text string, most int) string {
	text = kaniko.Clean(strings.Join(strings.Fields(text), " "))
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

// failed returns the error that a termination message tells of.
func failed(message string, exitCode int32) error {
	var f failure
	if err := json.Unmarshal([]byte(message), &f); err != nil || !slices.Contains(builder.Kinds(), f.Kind) {
		return builder.Errorf(builder.KindUnavailable, "preparing the build", "exit code %d", exitCode)
	}
	return &builder.Error{Kind: f.Kind, Op: f.Op, Err: errors.New(f.Message)}
}
