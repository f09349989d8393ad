//go:build e2e

package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"kiln/cmd/cli"
)

const (
	s3Secret = "secret-of-s3-9d1"
)

func TestGitSourceByBranchAndByCommitWithAToken(t *testing.T) {
	repo, address := gitRepository(t, "127.0.0.1", gitToken)
	first := commit(t, repo, "print('one')")
	k := up(t, t.TempDir(), "KILN_PROJECT_SECRET__E2E__GIT_TOKEN="+gitToken)
	pushBase(t, k.Registry+"/base:1", 0)
	build := func(ref, id string) (completed built, files map[string]string) {
		t.Helper()
		completed = k.build(t, id, sourceFunction(t, k, "from-git", address+"#"+ref, "cat /home/mlrun_code/main.py"))
		return completed, completed.files(t)
	}

	one, files := build("main", "branch-1")
	if got := files["home/mlrun_code/main.py"]; got != "print('one')\n" || one.Outcome != "built" {
		t.Errorf("%s, main.py of the branch is %q", one.Outcome, got)
	}
	for name := range files {
		if strings.Contains(name, ".git/") {
			t.Errorf("the repository's own data is in the image: %s", name)
		}
	}
	if again, _ := build("main", "branch-2"); again.Outcome != "reused" || again.Digest != one.Digest {
		t.Errorf("the branch at the same commit is %s", again.Outcome)
	}
	commit(t, repo, "print('two')")
	two, files := build("main", "branch-3")
	if got := files["home/mlrun_code/main.py"]; got != "print('two')\n" || two.Outcome != "built" {
		t.Errorf("%s, main.py of the moved branch is %q", two.Outcome, got)
	}
	if old, _ := build(first, "commit"); old.Outcome != "reused" || old.Digest != one.Digest {
		t.Errorf("the first commit by its id is %s, want the image of the branch then", old.Outcome)
	}
	k.hidden(t, gitToken)
}

func TestArchivesObjectsAndFoldersAreSources(t *testing.T) {
	files := map[string]string{"main.py": "print('hello')\n", "pkg/util.py": "x = 1\n"}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/code.tar.gz":
			_, _ = w.Write(tarGz(t, files))
		case "/code.zip":
			_, _ = w.Write(zipped(t, files))
		case "/main.py":
			_, _ = w.Write([]byte(files["main.py"]))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(web.Close)
	k := up(t, t.TempDir(), "KILN_PROJECT_SECRET__E2E__AWS_ACCESS_KEY_ID=key", "KILN_PROJECT_SECRET__E2E__AWS_SECRET_ACCESS_KEY="+s3Secret,
		"KILN_PROJECT_SECRET__E2E__AWS_ENDPOINT_URL="+bucketServer(t, "code", "v1.tar.gz", tarGz(t, files)), "KILN_PROJECT_SECRET__E2E__AWS_REGION=us-east-1")
	pushBase(t, k.Registry+"/base:1", 0)
	folder := t.TempDir()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		write(name, text)
	}
	write(".dockerignore", "*.secret\n")
	write("password.secret", "not for the image")
	archive := filepath.Join(t.TempDir(), "local.zip")
	if err := os.WriteFile(archive, zipped(t, files), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		source string
		args   []string
	}{
		"tar.gz":        {source: web.URL + "/code.tar.gz"},
		"zip":           {source: web.URL + "/code.zip"},
		"s3":            {source: "s3://code/v1.tar.gz"},
		"folder":        {args: []string{"--source", folder}},
		"local archive": {args: []string{"--source", archive}},
	} {
		id := strings.ReplaceAll(name, " ", "-")
		done := k.build(t, id, sourceFunction(t, k, "from-"+strings.ReplaceAll(id, ".", "-"), tc.source, "ls -R /home/mlrun_code"), tc.args...)
		got := done.files(t)
		for file, want := range files {
			if got["home/mlrun_code/"+file] != want {
				t.Errorf("%s: %s is %q, want %q", name, file, got["home/mlrun_code/"+file], want)
			}
		}
		if _, there := got["home/mlrun_code/password.secret"]; there {
			t.Errorf("%s: a file that .dockerignore names is in the image", name)
		}
	}
	single := k.build(t, "single", sourceFunction(t, k, "single", web.URL+"/main.py", "true"))
	if got := single.files(t)["home/mlrun_code/main.py"]; got != files["main.py"] {
		t.Errorf("a single file is %q", got)
	}
	k.hidden(t, s3Secret)
}

func TestSourcesThatAreNotThereOrHostileEndInOneEventEach(t *testing.T) {
	_, address := gitRepository(t, "127.0.0.1", gitToken)
	escape := tarOf(t, tar.Header{Name: "../../etc/cron.d/x", Mode: 0o644, Size: 1})
	link := tarOf(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "l/passwd", Mode: 0o644, Size: 1})
	device := tarOf(t, tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666})
	bodies := map[string][]byte{"/escape.tar": escape, "/link.tar": link, "/device.tar": device, "/torn.zip": zipped(t, map[string]string{"a": "b"})[:40]}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, ok := bodies[r.URL.Path]; ok {
			_, _ = w.Write(body)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(web.Close)
	k := up(t, t.TempDir(), "KILN_PROJECT_SECRET__E2E__GIT_TOKEN=wrong-token-5a1")
	pushBase(t, k.Registry+"/base:1", 0)
	js := k.js(t)
	for id, tc := range map[string]struct{ source, code, text string }{
		"wrong-token": {address + "#main", "source_not_found", "GIT_TOKEN"},
		"missing":     {web.URL + "/nope.tar.gz", "source_not_found", "nope.tar.gz"},
		"escape":      {web.URL + "/escape.tar", "invalid_request", "escape.tar"},
		"link":        {web.URL + "/link.tar", "invalid_request", "link.tar"},
		"device":      {web.URL + "/device.tar", "invalid_request", "device.tar"},
		"torn":        {web.URL + "/torn.zip", "invalid_request", "torn.zip"},
		"store":       {"store://artifacts/e2e/code", "invalid_request", "store://"},
	} {
		t.Run(id, func(t *testing.T) {
			if _, err := js.Publish(t.Context(), "build.requested", sourceFunction(t, k, id, tc.source, "true"), jetstreamID(id)...); err != nil {
				t.Fatal(err)
			}
			all := terminals(t, js, id, time.Minute)
			if len(all) != 1 || all[0].subject != "build.failed" {
				t.Fatalf("terminal events: %+v", all)
			}
			if got := all[0].field(t, "error", "code"); got != tc.code || !bytes.Contains(all[0].Data, []byte(tc.text)) {
				t.Errorf("code %v, want %s naming %q: %s", got, tc.code, tc.text, all[0].Data)
			}
		})
	}
	if left := k.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	k.hidden(t, "wrong-token-5a1")
}

func (b built) files(t *testing.T) map[string]string {
	t.Helper()
	img, err := crane.Pull(b.ImageRef)
	if err != nil {
		t.Fatal(err)
	}
	return imageFiles(t, img)
}

// build requests an image by the command line and wants it made.
func (k *kiln) build(t *testing.T, id string, function []byte, args ...string) built {
	t.Helper()
	file := filepath.Join(t.TempDir(), "function.json")
	if err := os.WriteFile(file, function, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := k.run(t.Context(), append([]string{"build", "-f", file, "--id", id, "-o", "json", "--wait", "2m"}, args...)...)
	var b built
	if err := json.Unmarshal([]byte(out), &b); err != nil || code != cli.ExitOK {
		t.Fatalf("build %s ended with %d: %s%s\n%s", id, code, out, errs, k.out)
	}
	return b
}

// hidden wants a secret in no file of the instance: events, ledger, logs, layers.
func (k *kiln) hidden(t *testing.T, secret string) {
	t.Helper()
	out, err := exec.Command("grep", "-rl", "--", secret, k.dir).CombinedOutput()
	if err == nil {
		t.Errorf("the secret is in %s", out)
	}
	if strings.Contains(k.out.String(), secret) {
		t.Error("the secret is in the output of kiln up")
	}
}

func sourceFunction(t *testing.T, k *kiln, name, source, command string) []byte {
	t.Helper()
	build := map[string]any{"base_image": k.Registry + "/base:1", "commands": []string{command}, "with_mlrun": false}
	if source != "" {
		build["source"] = source
	}
	raw, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": name, "project": "e2e"}, "spec": map[string]any{"build": build},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func tarOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarGz(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for name, text := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for name, text := range files {
		w, err := zw.Create(name)
		if err == nil {
			_, err = fmt.Fprint(w, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bucketServer speaks S3 to whoever signs with the secret, and has one object.
func bucketServer(t *testing.T, bucket, key string, body []byte) (address string) {
	t.Helper()
	srv := httptest.NewServer(gofakes3.New(s3mem.New(), gofakes3.WithV4Auth(map[string]string{"key": s3Secret})).Server())
	t.Cleanup(srv.Close)
	client, err := minio.New(strings.TrimPrefix(srv.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4("key", s3Secret, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PutObject(t.Context(), bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	return srv.URL
}
