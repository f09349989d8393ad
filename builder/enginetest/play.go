package enginetest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"kiln/builder"
)

// Play is a Script that acts out the plans of the suite, command by command, without
// executing anything. With it a Fake passes the suite, which shows that the suite asks
// for nothing that only one engine can do.
func Play() Script {
	return func(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
		if err := ctx.Err(); err != nil {
			return builder.Result{}, err
		}
		if plan.Limits.Timeout > 0 {
			var cancel context.CancelFunc
			cause := &builder.Error{Kind: builder.KindTimeout, Op: "building", Err: fmt.Errorf("it took longer than the limit of %s", plan.Limits.Timeout)}
			ctx, cancel = context.WithTimeoutCause(ctx, plan.Limits.Timeout, cause)
			defer cancel()
		}
		for line := range strings.Lines(plan.Dockerfile) {
			command, ok := strings.CutPrefix(strings.TrimSpace(line), "RUN ")
			if !ok {
				continue
			}
			_, _ = fmt.Fprintf(logs, "RUN %s\n", command)
			if err := act(ctx, command, logs); err != nil {
				return builder.Result{}, err
			}
		}
		digest, err := push(ctx, plan)
		if refused, ok := errors.AsType[*transport.Error](err); ok && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden) {
			err = &builder.Error{Kind: builder.KindPushDenied, Op: "pushing the image", Err: err}
		}
		return builder.Result{Digest: digest}, err
	}
}

// act writes what the command would print.
func act(ctx context.Context, command string, logs io.Writer) error {
	switch {
	case strings.Contains(command, "sleep 600"):
		emit(logs, []string{"waiting"})
		<-ctx.Done()
		return context.Cause(ctx)
	case strings.Contains(command, "exit 7"):
		emit(logs, []string{"last words"})
		return &builder.Error{Kind: builder.KindCommandFailed, Op: "running RUN " + command, Err: errors.New("exit code 7")}
	case strings.Contains(command, "seq 1 2000"):
		for i := range 2000 {
			emit(logs, []string{fmt.Sprint("line ", i+1)})
		}
		emit(logs, []string{"unfinished"})
	case strings.Contains(command, "I am "):
		_, number, _ := strings.Cut(command, "I am ")
		emit(logs, []string{"I am " + number[:1]})
	case strings.Contains(command, "cat /kiln/requirements.txt"):
		emit(logs, []string{"pandas==2", "from script", "args: plain value 10 []", "secrets: 13 []", "file: 12", "after: []"})
	}
	return nil
}

// filesOf returns what is in the image's layers from the given one on, folders
// excepted.
func filesOf(t *testing.T, img v1.Image, from int) map[string]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, layer := range layers[from:] {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		r := tar.NewReader(content)
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag != tar.TypeDir {
				files[h.Name] = string(data)
			}
		}
		_ = content.Close()
	}
	return files
}
