package dockerfile_test

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"kiln/builder/dockerfile"
)

// FuzzRender proves that no string adds an instruction, a flag, a mount or a stage:
// whatever is rendered parses to exactly what was asked for. Lists are cut at "\x01".
func FuzzRender(f *testing.F) {
	for _, seed := range [][]string{
		{"python:3.12-slim", "A\x01B", "pip list\x01a\nb", "numpy\x01pandas>2 # why", "USER 1000", "PIP_INDEX_URL", "/home/mlrun_code/", "v"},
		{"python AS x", "A=b", "--mount=type=bind a", "-r /etc/shadow", "# escape=`", "", "/a\"]\nUSER root", "$A ${HOME} \\"},
		{"scratch", "", "KILN_EOF\nKILN_EOF_2\r\nUSER root\x01[\"a\"]\x01cat <<E\x01a \\", "", "FROM x\nRUN <<E\nE", "a b", "/a b/../c", "\"'`"},
		{"a@sha256:" + strings.Repeat("a", 64), "_", "#!/bin/bash -e\nx\x01#!sh\x01\ufeff\u2028", "a\\\x01b", "\\", "X", "/$A", "a\nUSER root"},
		{"$A", "$A", "\v\f\u0085x\u00a0\x01- -\x01\r\n\ta\r\n", "\u2028", "ARG A", "A\x01A", "--from=x /", "<<E"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7])
	}
	f.Fuzz(func(t *testing.T, base, args, commands, requirements, extra, secrets, target, value string) {
		spec := dockerfile.Spec{
			Base: base, Args: list(args), Commands: list(commands), Requirements: list(requirements), Secrets: list(secrets),
			Source:   &dockerfile.Source{Dir: "source", Target: target, Owner: value, First: len(value)%2 == 0},
			Defaults: []dockerfile.Default{{Name: "DEFAULT", Value: value}},
		}
		text, files, err := dockerfile.Render(spec)
		if err != nil {
			spec = accepted(spec)
			if text, files, err = dockerfile.Render(spec); err != nil {
				t.Fatalf("Render refuses what the checks accept: %v", err)
			}
		}
		checkText(t, spec, text, files)
		checkExtra(t, spec, text, extra)
	})
}

// accepted returns what the checks let through, so that one fault does not hide the
// rest of an input.
func accepted(spec dockerfile.Spec) dockerfile.Spec {
	if dockerfile.CheckBase(spec.Base) != nil {
		spec.Base = "scratch"
	}
	keep := func(list []string, check func(string) error) []string {
		return slices.DeleteFunc(list, func(s string) bool { return check(s) != nil })
	}
	names := func(list []string) []string {
		slices.Sort(list)
		return slices.Compact(keep(list, dockerfile.CheckName))
	}
	spec.Args, spec.Secrets = names(spec.Args), names(spec.Secrets)
	if dockerfile.CheckOwner(spec.Source.Owner) != nil {
		spec.Source.Owner = "1:2"
	}
	if dockerfile.CheckTarget(spec.Source.Target) != nil {
		spec.Source = nil
	}
	if strings.ContainsFunc(spec.Defaults[0].Value, unicode.IsControl) || !utf8.ValidString(spec.Defaults[0].Value) {
		spec.Defaults = nil
	}
	spec.Commands = keep(spec.Commands, dockerfile.CheckCommand)
	spec.Requirements = keep(spec.Requirements, dockerfile.CheckRequirement)
	return spec
}

// checkExtra wants the same instructions as before at the beginning of the first
// stage, when the extra text is a Dockerfile at all.
func checkExtra(t *testing.T, spec dockerfile.Spec, head, extra string) {
	t.Helper()
	spec.Extra = extra
	text, _, err := dockerfile.Render(spec)
	if err != nil {
		return
	}
	result, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return
	}
	stages, _, err := instructions.Parse(result.AST, nil)
	if err != nil {
		return
	}
	for i, want := range parse(t, head).Commands {
		if got := stages[0].Commands[i]; got.Name() != want.Name() || len(got.Location()) != len(want.Location()) ||
			got.Location()[0] != want.Location()[0] {
			t.Fatalf("extra %q changes instruction %d\n%s", extra, i, text)
		}
	}
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\x01")
}
