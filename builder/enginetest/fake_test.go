package enginetest

import (
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

func TestFakeSuccessIsARealImage(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(registry.New())
	t.Cleanup(srv.Close)
	plan := builder.Plan{BuildID: strings.Repeat("a", 64), Attempt: 1, Destination: strings.TrimPrefix(srv.URL, "http://") + "/x:y"}
	fake := NewFake(Fail(builder.KindUnavailable, "first"), Succeed("hello"))
	if _, err := fake.Run(t.Context(), plan, io.Discard); builder.KindOf(err) != builder.KindUnavailable {
		t.Fatalf("first run: %v, want unavailable", err)
	}
	var logs strings.Builder
	result, err := fake.Run(t.Context(), plan, &logs)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(plan.Destination)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref)
	if err != nil || desc.Digest.String() != result.Digest {
		t.Errorf("registry has %v (%v), want %s", desc, err, result.Digest)
	}
	if _, err := remote.Image(ref); err != nil {
		t.Errorf("image is not readable: %v", err)
	}
	if logs.String() != "hello\n" || fake.Runs() != 2 || len(fake.Plans()) != 2 || fake.Running() != 0 {
		t.Errorf("logs %q, runs %d, plans %d, running %d", logs.String(), fake.Runs(), len(fake.Plans()), fake.Running())
	}
}

func TestFakeTurnsCausesIntoKinds(t *testing.T) {
	t.Parallel()
	for want, cancel := range map[builder.Kind]func(context.Context) context.Context{
		builder.KindInterrupted: func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(builder.ErrShutdown)
			return ctx
		},
		builder.KindTimeout: func(ctx context.Context) context.Context {
			ctx, cancel := context.WithTimeoutCause(ctx, 1, errors.New("too long"))
			t.Cleanup(cancel)
			return ctx
		},
		builder.KindCanceled: func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx
		},
	} {
		if _, err := NewFake(Block()).Run(cancel(t.Context()), builder.Plan{}, io.Discard); builder.KindOf(err) != want {
			t.Errorf("got %v, want kind %s", err, want)
		}
	}
}
