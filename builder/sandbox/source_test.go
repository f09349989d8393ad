package sandbox

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/minio/minio-go/v7"
	s3credentials "github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/registry"
	"kiln/builder/source"
	"kiln/builder/source/archive"
)

const (
	sourceToken = "t0ken-of-the-git-server"
	jobFile     = "print('job')\n"
)

// tarball returns a tar.gz of files by name.
func tarball(tb testing.TB, files map[string]string) []byte {
	tb.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for file, text := range files {
		err := w.WriteHeader(&tar.Header{Name: file, Mode: 0o755, Size: int64(len(text))})
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func zipped(tb testing.TB, files map[string]string) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for file, text := range files {
		f, err := w.Create(file)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// privateRepository serves a repository to who has the token, and returns its URL and
// first commit, which main has left behind.
func privateRepository(tb testing.TB) (url, first string) {
	tb.Helper()
	program, err := exec.LookPath("git")
	if err != nil {
		tb.Skip("SKIPPED: no git; get it with: apt-get install git")
	}
	root := tb.TempDir()
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=c", "GIT_COMMITTER_EMAIL=c@example.com",
	}
	git := func(args ...string) string {
		cmd := exec.CommandContext(tb.Context(), program, append([]string{"-C", root}, args...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			tb.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main", "repo")
	for _, text := range []string{"print('first')\n", jobFile} {
		if err := os.WriteFile(filepath.Join(root, "repo", "job.py"), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		git("-C", "repo", "add", "-A")
		git("-C", "repo", "commit", "-q", "-m", "change")
	}
	backend := &cgi.Handler{Path: program, Args: []string{"http-backend"}, Env: append(env, "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1")}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != sourceToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	return "git" + strings.TrimPrefix(server.URL, "http") + "/repo", git("-C", "repo", "rev-parse", "HEAD~1")
}

// bucket is a real S3 server with an archive.
func bucket(tb testing.TB, archive []byte) map[string]string {
	tb.Helper()
	const id, secret = "sandbox-key", "sandbox-secret"
	server := httptest.NewServer(gofakes3.New(s3mem.New(), gofakes3.WithV4Auth(map[string]string{id: secret})).Server())
	tb.Cleanup(server.Close)
	client, err := minio.New(strings.TrimPrefix(server.URL, "http://"), &minio.Options{Creds: s3credentials.NewStaticV4(id, secret, ""), Region: "us-east-1"})
	if err == nil {
		err = client.MakeBucket(tb.Context(), "bucket", minio.MakeBucketOptions{})
	}
	if err == nil {
		_, err = client.PutObject(tb.Context(), "bucket", "code.tar.gz", bytes.NewReader(archive), int64(len(archive)), minio.PutObjectOptions{})
	}
	if err != nil {
		tb.Fatal(err)
	}
	return map[string]string{"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": server.URL}
}

// uploaded holds one context.
type uploaded []byte

func (u uploaded) Open(context.Context, string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(u)), nil
}

func TestSourcesOfEveryKindGetIntoTheImage(t *testing.T) {
	t.Parallel()
	cfg, s := testConfig(t), newSite(t)
	tarred := tarball(t, map[string]string{"job.py": jobFile})
	local := t.TempDir()
	if err := os.WriteFile(filepath.Join(local, "job.py"), []byte(jobFile), 0o600); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	digest, _, err := archive.Pack(local, &packed)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(map[string][]byte{
			"/code.tar.gz": tarred, "/code.zip": zipped(t, map[string]string{"job.py": jobFile}), "/job.py": []byte(jobFile),
		}[r.URL.Path])
	}))
	t.Cleanup(web.Close)
	sources, err := source.New(source.Config{CacheDir: t.TempDir(), Contexts: uploaded(packed.Bytes())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sources.Close() })
	cfg.Sources = sources
	e := engine(t, cfg)
	images, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: images, Sources: sources}, e)
	if err != nil {
		t.Fatal(err)
	}
	repository, first := privateRepository(t)
	token := map[string]string{"GIT_TOKEN": sourceToken}
	for name, tc := range map[string]struct {
		url  string
		env  map[string]string
		want string
	}{
		"git branch": {repository + "#refs/heads/main", token, jobFile},
		"git commit": {repository + "#" + first, token, "print('first')\n"},
		"tar.gz":     {web.URL + "/code.tar.gz", nil, jobFile},
		"zip":        {web.URL + "/code.zip", nil, jobFile},
		"file":       {web.URL + "/job.py", nil, jobFile},
		"s3":         {"s3://bucket/code.tar.gz", bucket(t, tarred), jobFile},
		"local":      {"context://" + strings.Replace(digest, ":", "-", 1) + ".tar.gz", nil, jobFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := builder.Request{
				Base: s.base.Ref, Target: s.reg.Host + "/team/" + strings.ReplaceAll(name, " ", "-"), Commands: []string{"cat $PYTHONPATH/job.py"},
				Source: &builder.Source{URL: tc.url, Target: "/home/mlrun_code", Owner: "1000:1000", First: true},
			}
			for key, value := range tc.env {
				r.BuildArgs = append(r.BuildArgs, builder.Arg{Name: key, Value: value, Secret: true})
			}
			plan, err := b.Plan(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			plan.Attempt = 1
			var logs strings.Builder
			result, err := b.Build(t.Context(), plan, &logs)
			if err != nil {
				t.Fatalf("%v\n%s", err, logs.String())
			}
			files, everything := pulled(t, b.ImageRef(plan, result.Digest))
			want := []string{"home/mlrun_code 1000", "home/mlrun_code/job.py 1000 " + strings.TrimSpace(tc.want)}
			if diff := cmp.Diff(want, files); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
			if !strings.Contains(logs.String(), strings.TrimSpace(tc.want)) {
				t.Errorf("the command did not see the source:\n%s", logs.String())
			}
			for key, value := range tc.env {
				if key != "AWS_ENDPOINT_URL" && strings.Contains(everything+logs.String(), value) {
					t.Errorf("the value of %s is in the image or its log", key)
				}
			}
		})
	}
	t.Cleanup(func() {
		if left := leftovers(t, e); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// pulled returns what is in the code's folder of an image, "name owner content", and
// all text of its manifest, configuration and files.
func pulled(tb testing.TB, ref string) (files []string, everything string) {
	tb.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		tb.Fatal(err)
	}
	image, err := remote.Image(parsed)
	if err != nil {
		tb.Fatal(err)
	}
	manifest, err := image.RawManifest()
	if err != nil {
		tb.Fatal(err)
	}
	config, err := image.RawConfigFile()
	if err != nil {
		tb.Fatal(err)
	}
	all := bytes.NewBuffer(slices.Concat(manifest, config))
	content := mutate.Extract(image)
	defer content.Close()
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(files)
			return files, all.String()
		}
		if err != nil {
			tb.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err != nil {
			tb.Fatal(err)
		}
		all.Write(raw)
		if strings.HasPrefix(h.Name, "home/mlrun_code") {
			files = append(files, strings.TrimSpace(fmt.Sprintf("%s %d %s", h.Name, h.Uid, raw)))
		}
	}
}

// sourcesFunc is a scripted Sources.
type sourcesFunc func(context.Context, *os.Root) error

func (f sourcesFunc) Fetch(ctx context.Context, _, _ string, _ map[string]string, dir *os.Root) error {
	return f(ctx, dir)
}

func TestSourcesThatFailLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fetch  sourcesFunc
		cancel bool
		kind   builder.Kind
	}{
		"not found": {func(context.Context, *os.Root) error {
			return builder.Errorf(builder.KindSourceNotFound, "fetching", "no such branch")
		}, false, builder.KindSourceNotFound},
		"canceled": {func(ctx context.Context, _ *os.Root) error {
			<-ctx.Done()
			return builder.Errorf(builder.KindUnavailable, "fetching", "%w", ctx.Err())
		}, true, builder.KindCanceled},
		"none": {nil, false, builder.KindInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			if tc.fetch != nil {
				cfg.Sources = tc.fetch
			}
			e, s := engine(t, cfg), newSite(t)
			plan := s.plan(t, `COPY ["source/", "/src/"]`)
			plan.Source = &builder.Source{URL: "https://example.com/x.zip", Target: "/src", Version: "sha256:x"}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.cancel {
				cancel()
			}
			_, err := e.Run(ctx, plan, io.Discard)
			if builder.KindOf(err) != tc.kind || err == nil {
				t.Errorf("got %s: %v, want %s", builder.KindOf(err), err, tc.kind)
			}
			if left := leftovers(t, e); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestSourceThatOutgrowsMemoryMovesToDisk(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Sources = sourcesFunc(func(_ context.Context, dir *os.Root) error {
		f, err := dir.Create("large")
		if err == nil {
			_, err = io.CopyN(f, zero{}, 40*mib)
			err = errors.Join(err, f.Close())
		}
		if errors.Is(err, unix.ENOSPC) {
			return &builder.Error{Kind: builder.KindDiskFull, Op: "fetching", Err: err}
		}
		return err
	})
	e, s := engine(t, cfg), newSite(t)
	plan := s.plan(t, `COPY ["source/", "/src/"]`)
	plan.Source = &builder.Source{URL: "https://example.com/x.zip", Target: "/src", Version: "sha256:x"}
	plan.Limits.Disk = 20 * gib
	b := &build{engine: e, plan: plan, logs: io.Discard, name: "kiln-outgrow-source-1", firstID: e.cfg.SubUIDBase}
	b.plan.Limits = e.cfg.limits(plan.Limits)
	if _, err := b.runIn(t.Context(), place{tmpfs: true, size: 30 * mib}); !errors.Is(err, errOutgrown) {
		t.Fatalf("on a small tmpfs: %v, want errOutgrown", err)
	}
	if _, err := b.runIn(t.Context(), place{size: b.plan.Limits.Disk}); err != nil {
		t.Errorf("on disk: %v", err)
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
