package builder_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kiln/builder"
)

func TestBuildVerifiesWhatTheEnginePushed(t *testing.T) {
	t.Parallel()
	var asked string
	reg := fakeRegistry{verify: func(_ context.Context, ref string) error { asked = ref; return nil }}
	b := newBuilder(t, builder.Config{}, reg, pushed)
	plan, err := b.Plan(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	result, err := b.Build(t.Context(), plan, io.Discard)
	if err != nil || result.Digest != digest("b") {
		t.Fatalf("Build = %+v, %v", result, err)
	}
	if want := "registry.example/ml/trainer@" + digest("b"); asked != want || b.ImageRef(plan, digest("b")) != want {
		t.Errorf("verified %q, ImageRef %q, want %q", asked, b.ImageRef(plan, digest("b")), want)
	}
	if b.EngineName() != "fake" {
		t.Errorf("EngineName = %q", b.EngineName())
	}
}

func TestBuildRedactsLogs(t *testing.T) {
	t.Parallel()
	engine := func(_ context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
		_, _ = io.WriteString(logs, "TOKEN=s3cr3t-value\nregistry-password and https://u:pip-password@a.example\nunfinished")
		return builder.Result{Digest: digest("b")}, nil
	}
	cfg := builder.Config{Pip: builder.Pip{IndexURL: "https://u:pip-password@a.example/simple"}}
	b := newBuilder(t, cfg, fakeRegistry{}, engine, builder.NewRedactor("registry-password"))
	plan, err := b.Plan(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	var logs strings.Builder
	if _, err := b.Build(t.Context(), plan, &logs); err != nil {
		t.Fatal(err)
	}
	if want := "TOKEN=***\n*** and https://***@a.example\nunfinished\n"; logs.String() != want {
		t.Errorf("logs = %q, want %q", logs.String(), want)
	}
}

func TestBuildRedactsWhatIsLearnedWhileItRuns(t *testing.T) {
	t.Parallel()
	known := builder.NewRedactor()
	engine := func(_ context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
		known.Learn("fresh-token")
		_, _ = io.WriteString(logs, "with fresh-token and s3cr3t-value\n")
		return builder.Result{Digest: digest("b")}, nil
	}
	b := newBuilder(t, builder.Config{}, fakeRegistry{}, engine, known)
	plan, err := b.Plan(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	before := b.Redactor(plan)
	var logs strings.Builder
	if _, err := b.Build(t.Context(), plan, &logs); err != nil || logs.String() != "with *** and ***\n" {
		t.Errorf("logs = %q, %v", logs.String(), err)
	}
	if got := before.Text("fresh-token"); got != "***" {
		t.Errorf("a Redactor of before shows %q", got)
	}
}

func TestNothingRunsThatMayNotBePushed(t *testing.T) {
	t.Parallel()
	want := builder.Errorf(builder.KindPushDenied, "preparing", "403")
	asked := ""
	reg := fakeRegistry{prepare: func(_ context.Context, destination string) error { asked = destination; return want }}
	engine := func(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
		t.Error("the engine ran")
		return builder.Result{}, nil
	}
	b := newBuilder(t, builder.Config{}, reg, engine)
	plan, err := b.Plan(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(t.Context(), plan, io.Discard); !errors.Is(err, want) || asked != plan.Destination {
		t.Errorf("Build = %v after asking for %q", err, asked)
	}
	// What ends the build while it prepares is not the registry's fault.
	ctx, cancel := context.WithCancelCause(t.Context())
	reg.prepare = func(context.Context, string) error { cancel(builder.ErrShutdown); return want }
	_, err = newBuilder(t, builder.Config{}, reg, engine).Build(ctx, plan, io.Discard)
	wantKind(t, err, builder.KindInterrupted)
}

func TestEveryStepUsesThePlansCredentials(t *testing.T) {
	t.Parallel()
	var names []string
	reg := fakeRegistry{with: func(secret string) { names = append(names, secret) }}
	b := newBuilder(t, builder.Config{}, reg, pushed)
	r := request()
	r.RegistrySecret = "team"
	plan, err := b.Plan(t.Context(), r)
	if err != nil || plan.RegistrySecret != "team" {
		t.Fatalf("Plan = %q, %v", plan.RegistrySecret, err)
	}
	if _, err := b.Build(t.Context(), plan, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Verify(t.Context(), plan, "x"), b.Tag(t.Context(), plan, "x")); err != nil {
		t.Fatal(err)
	}
	// Resolve, Prepare, Verify of what was pushed, Verify, Tag.
	if want := []string{"team", "team", "team", "team", "team"}; !slices.Equal(names, want) {
		t.Errorf("secrets are %q, want %q", names, want)
	}
	if other, err := b.Plan(t.Context(), request()); err != nil || other.BuildID != plan.BuildID {
		t.Errorf("who pushes is part of the identity (%v)", err)
	}
}

func TestBuildWaitsForAnImageThatAppearsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		reg := fakeRegistry{verify: func(context.Context, string) error {
			if time.Since(began) < 3*time.Second {
				return &builder.Error{Kind: builder.KindUnavailable, Op: "verifying", Err: builder.ErrImageMissing}
			}
			return nil
		}}
		if _, err := newBuilder(t, builder.Config{}, reg, pushed).Build(t.Context(), builder.Plan{}, io.Discard); err != nil {
			t.Error(err)
		}
	})
}

func TestBuildNeverTakesAMissingImageForSuccess(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		digest string
		err    error
		want   builder.Kind
		within time.Duration
	}{
		"not there":            {digest("b"), &builder.Error{Kind: builder.KindUnavailable, Err: builder.ErrImageMissing}, builder.KindUnavailable, 15 * time.Second},
		"not there, odd kind":  {digest("b"), &builder.Error{Kind: builder.KindBaseNotFound, Err: builder.ErrImageMissing}, builder.KindUnavailable, 15 * time.Second},
		"registry is down":     {digest("b"), builder.Errorf(builder.KindUnavailable, "verifying", "connection refused"), builder.KindUnavailable, 15 * time.Second},
		"unclassified":         {digest("b"), errors.New("what"), builder.KindUnavailable, 15 * time.Second},
		"reading is forbidden": {digest("b"), builder.Errorf(builder.KindPullDenied, "verifying", "403"), builder.KindPullDenied, 0},
		"no digest":            {"", nil, builder.KindUnavailable, 0},
		"a tag for a digest":   {"latest", nil, builder.KindUnavailable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				reg := fakeRegistry{verify: func(context.Context, string) error { return tc.err }}
				engine := func(context.Context, builder.Plan, io.Writer) (builder.Result, error) {
					return builder.Result{Digest: tc.digest}, nil
				}
				began := time.Now()
				_, err := newBuilder(t, builder.Config{}, reg, engine).Build(t.Context(), builder.Plan{}, io.Discard)
				wantKind(t, err, tc.want)
				if took := time.Since(began); took > tc.within {
					t.Errorf("it took %s, want at most %s", took, tc.within)
				}
				if tc.err != nil && !errors.Is(err, tc.err) {
					t.Errorf("error %v does not wrap the registry's", err)
				}
			})
		})
	}
}

func TestReadingBackEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		reg := fakeRegistry{verify: func(context.Context, string) error {
			cancel(builder.ErrShutdown)
			return builder.ErrImageMissing
		}}
		_, err := newBuilder(t, builder.Config{}, reg, pushed).Build(ctx, builder.Plan{}, io.Discard)
		wantKind(t, err, builder.KindInterrupted)
	})
}

func TestTimeoutHoldsForAnEngineThatCleansUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		engine := func(ctx context.Context, _ builder.Plan, _ io.Writer) (builder.Result, error) {
			<-ctx.Done()
			time.Sleep(5 * time.Second)
			return builder.Result{}, builder.Errorf(builder.KindCommandFailed, "running", "killed")
		}
		began := time.Now()
		plan := builder.Plan{Limits: builder.Limits{Timeout: time.Minute}}
		result, err := newBuilder(t, builder.Config{}, fakeRegistry{}, engine).Build(t.Context(), plan, io.Discard)
		wantKind(t, err, builder.KindTimeout)
		if !strings.Contains(err.Error(), "1m0s") {
			t.Errorf("error %q does not name the limit", err)
		}
		if took := time.Since(began); took != 65*time.Second || result.Duration != took {
			t.Errorf("took %s, Duration %s, want 65s", took, result.Duration)
		}
	})
}

func TestEngineThatNeverStopsIsLeftBehind(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cause error
		want  builder.Kind
	}{
		"limit":      {nil, builder.KindTimeout},
		"shutdown":   {builder.ErrShutdown, builder.KindInterrupted},
		"lease lost": {builder.ErrLeaseLost, builder.KindLeaseLost},
		"canceled":   {errors.New("user"), builder.KindCanceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				release, ended := make(chan struct{}), make(chan struct{})
				engine := func(_ context.Context, _ builder.Plan, logs io.Writer) (builder.Result, error) {
					defer close(ended)
					_, _ = io.WriteString(logs, "early\n")
					<-release
					_, _ = io.WriteString(logs, "late\n")
					return builder.Result{Digest: digest("b")}, nil
				}
				if tc.cause != nil {
					time.AfterFunc(time.Second, func() { cancel(tc.cause) })
				}
				var logs strings.Builder
				began := time.Now()
				plan := builder.Plan{Limits: builder.Limits{Timeout: time.Hour}}
				_, err := newBuilder(t, builder.Config{}, fakeRegistry{}, engine).Build(ctx, plan, &logs)
				wantKind(t, err, tc.want)
				if took := time.Since(began); took > time.Hour+2*time.Minute {
					t.Errorf("it took %s", took)
				}
				close(release)
				<-ended
				if logs.String() != "early\n" {
					t.Errorf("logs = %q, want nothing after Build returned", logs.String())
				}
			})
		})
	}
}

func TestEngineErrorsPassThrough(t *testing.T) {
	t.Parallel()
	want := builder.Errorf(builder.KindCommandFailed, `running "exit 7"`, "exit code 7")
	engine := func(context.Context, builder.Plan, io.Writer) (builder.Result, error) { return builder.Result{}, want }
	reg := fakeRegistry{verify: func(context.Context, string) error {
		t.Error("a failed build was verified")
		return nil
	}}
	_, err := newBuilder(t, builder.Config{}, reg, engine).Build(t.Context(), builder.Plan{}, io.Discard)
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}

func TestRegistryErrorsPassThroughPlan(t *testing.T) {
	t.Parallel()
	want := builder.Errorf(builder.KindBaseNotFound, "resolving", "404")
	reg := fakeRegistry{resolve: func(string, string) (builder.Image, error) { return builder.Image{}, want }}
	_, err := newBuilder(t, builder.Config{}, reg, pushed).Plan(t.Context(), request())
	if !errors.Is(err, want) {
		t.Errorf("error = %v, want %v", err, want)
	}
}
