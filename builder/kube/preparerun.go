package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"kiln/builder/kaniko"
	"kiln/builder/run/launcher"
)

// PrepareRun fills a run's workspace as the plan in the folder from asks: the launcher,
// which is the program in the named file, what it is to do, and, by the sources that open
// returns, the code. Lines for people go to log. Errors are of *builder.Error.
func PrepareRun(ctx context.Context, from, workspace *os.Root, program string, open Opener, log io.Writer) error {
	const op = "preparing the run"
	raw, err := from.ReadFile(keyPlan)
	if err != nil {
		return unavailable(op, err)
	}
	var d runDocument
	if err := json.Unmarshal(raw, &d); err != nil {
		return unavailable(op, err)
	}
	if err := writeGuest(workspace, d.Launcher, program); err != nil {
		return unavailable(op, err)
	}
	if d.Source == nil {
		return nil
	}
	_, _ = fmt.Fprintf(log, "Fetching the source, %s\n", kaniko.Clean(d.Source.Version))
	if err := fetch(ctx, from, workspace, sourceFolder, d.Source, d.Env, open); err != nil {
		return err
	}
	// Who the image's user is, is not known here: everybody may write.
	if err := workspace.Chmod(sourceFolder, 0o777); err != nil {
		return unavailable(op, err)
	}
	return nil
}

// writeGuest writes what is mounted at launcher.Dir.
func writeGuest(workspace *os.Root, spec launcher.Spec, program string) error {
	in := func(name string) string { return path.Join(guestFolder, strings.TrimPrefix(name, launcher.Dir+"/")) }
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	err = errors.Join(workspace.MkdirAll(in(launcher.Out), 0o755), workspace.Chmod(in(launcher.Out), 0o777),
		workspace.WriteFile(in(launcher.SpecFile), text, 0o644), workspace.Chmod(in(launcher.SpecFile), 0o644))
	if err != nil {
		return err
	}
	source, err := os.Open(program) //nolint:gosec // the program beside this one
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := workspace.OpenFile(in(launcher.Program), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close(), workspace.Chmod(in(launcher.Program), 0o755))
}
