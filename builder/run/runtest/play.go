package runtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/builder/run/launcher"
	"kiln/builder/run/runtest/steps"
)

// Play is a script that does what the probe does in the image of the suite: for runners
// that have no containers.
func Play(ctx context.Context, plan run.Plan, logs io.Writer) (run.Result, error) {
	report := Probe(ctx, plan, run.LauncherSpec(plan, Entrypoint()), logs)
	if report.Failure != "" {
		return run.Result{}, builder.Errorf(builder.KindInvalidRequest, "starting the process", "%s", report.Failure)
	}
	return run.Result{ExitCode: report.ExitCode, Results: report.Results}, nil
}

// Probe plays the launcher and the probe in an image of the suite, and reports as the
// launcher does, without times.
func Probe(ctx context.Context, plan run.Plan, spec launcher.Spec, logs io.Writer) launcher.Report {
	for _, c := range spec.Commands {
		if !slices.Contains([]string{"", "probe", "/bin/probe"}, c.Needs) {
			continue
		}
		if len(c.Args) == 0 {
			c.Args = spec.Entrypoint
		}
		g := guest{plan: plan, env: append(slices.Clone(c.Env), launcher.ResultsVar+"="+spec.Results), written: make(map[string][]byte)}
		code := steps.Play(ctx, steps.World{
			Out: logs, Getenv: g.getenv, ReadFile: g.read, Getwd: g.getwd, Kill: func(int) {}, Stay: func() { <-ctx.Done() },
			WriteFile: func(name string, data []byte) error { g.written[name] = data; return nil },
			Alloc:     func(int) error { return errors.ErrUnsupported }, Fill: func(int) error { return errors.ErrUnsupported },
		}, c.Args[1:])
		report := launcher.Report{ExitCode: code}
		report.Results, report.Note = launcher.CheckResults(g.written[spec.Results], spec.MaxResults)
		return report
	}
	return launcher.Report{Failure: fmt.Sprintf("the image has none of the programs that could run this: %v", spec.Commands)}
}

// guest is a container of the suite's image.
type guest struct {
	plan    run.Plan
	env     []string
	written map[string][]byte
}

func (g guest) getenv(name string) string {
	value := map[string]string{"PATH": "/bin", "FROM_IMAGE": "image"}[name]
	for _, v := range slices.Concat(g.plan.Env, g.plan.Secrets) {
		if v.Name == name {
			value = v.Value
		}
	}
	for _, entry := range g.env {
		if n, v, _ := strings.Cut(entry, "="); n == name {
			value = v
		}
	}
	return value
}

func (g guest) read(name string) ([]byte, error) {
	for _, f := range g.plan.Files {
		if f.Path == name {
			return f.Data, nil
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (g guest) getwd() (string, error) {
	if g.plan.Workdir != "" {
		return g.plan.Workdir, nil
	}
	return "/home", nil
}
