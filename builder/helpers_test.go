package builder_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"kiln/builder"
)

// digest makes a valid digest of one repeated hex digit.
func digest(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }

// fakeRegistry answers as it is told. Nil functions succeed.
type fakeRegistry struct {
	resolve func(ref, platform string) (builder.Image, error)
	prepare func(ctx context.Context, destination string) error
	verify  func(ctx context.Context, imageRef string) error
	// with notes the secrets that were asked for.
	with func(secret string)
}

func (f fakeRegistry) With(secret string) builder.Registry {
	if f.with != nil {
		f.with(secret)
	}
	return f
}

func (f fakeRegistry) Prepare(ctx context.Context, destination string) error {
	if f.prepare == nil {
		return nil
	}
	return f.prepare(ctx, destination)
}

func (f fakeRegistry) Resolve(_ context.Context, ref, platform string) (builder.Image, error) {
	if f.resolve == nil {
		return builder.Image{Ref: ref, Digest: digest("a"), Size: 42}, nil
	}
	return f.resolve(ref, platform)
}

func (f fakeRegistry) Verify(ctx context.Context, imageRef string) error {
	if f.verify == nil {
		return nil
	}
	return f.verify(ctx, imageRef)
}

func (fakeRegistry) Tag(context.Context, string, string) error { return nil }

// engineFunc is an engine made of its Run method.
type engineFunc func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error)

func (f engineFunc) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	return f(ctx, plan, logs)
}

func (engineFunc) Name() string { return "fake" }

func pushed(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
	return builder.Result{Digest: digest("b")}, nil
}

func request() builder.Request {
	return builder.Request{
		ID: "r-1", Project: "default", Name: "trainer", Tag: "latest",
		Base: "python:3.12-slim", Target: "registry.example/ml/trainer:latest",
		Commands:     []string{"apt-get install -y git"},
		Requirements: []string{"pandas==2.2.0"},
		BuildArgs:    []builder.Arg{{Name: "MODE", Value: "fast"}, {Name: "TOKEN", Value: "s3cr3t-value", Secret: true}},
		Platform:     "linux/amd64",
	}
}

func newBuilder(t *testing.T, cfg builder.Config, reg builder.Registry, engine engineFunc, known ...*builder.Redactor) *builder.Builder {
	t.Helper()
	b, err := builder.New(cfg, builder.Lookup{Registry: reg}, engine, known...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustPlan(t *testing.T, cfg builder.Config, r builder.Request) builder.Plan {
	t.Helper()
	plan, err := newBuilder(t, cfg, fakeRegistry{}, pushed).Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func wantKind(t *testing.T, err error, want builder.Kind) {
	t.Helper()
	if err == nil || builder.KindOf(err) != want {
		t.Errorf("error = %v (kind %s), want kind %s", err, builder.KindOf(err), want)
	}
}
