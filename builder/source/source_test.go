package source

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/source/archive"
	"kiln/builder/source/archivetest"
)

func newSources(tb testing.TB, change func(*Config)) *Sources {
	tb.Helper()
	cfg := Config{CacheDir: tb.TempDir()}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// fetched pins and fetches a source.
func fetched(tb testing.TB, s *Sources, url string, env map[string]string) (pinned string, dir archivetest.Folder) {
	tb.Helper()
	dir = archivetest.NewFolder(tb)
	pinned, err := s.Pin(tb.Context(), url, env)
	if err == nil {
		err = s.Fetch(tb.Context(), url, pinned, env, dir.Root)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return pinned, dir
}

// cachedFiles lists what is in the cache but its lock.
func cachedFiles(tb testing.TB, s *Sources) []string {
	tb.Helper()
	var names []string
	err := fs.WalkDir(s.cache.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && name != "lock" && name != "." && name != blobDir && name != tempDir {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return names
}

// serve serves content by path.
func serve(tb testing.TB, content map[string][]byte) *httptest.Server {
	tb.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, ok := content[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(raw)
	}))
	tb.Cleanup(server.Close)
	return server
}

func archiveBytes(tb testing.TB, name string, entries ...archivetest.Entry) []byte {
	tb.Helper()
	raw, err := io.ReadAll(archivetest.File(tb, name, entries))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func TestArchivesAndFilesAreFetchedByHTTP(t *testing.T) {
	t.Parallel()
	project := []archivetest.Entry{{Name: "project/", Kind: tar.TypeDir, Mode: 0o755}, archivetest.Text("project/job.py", "print()")}
	unpacked := []string{"project/", "project/job.py=print()"}
	server := serve(t, map[string][]byte{
		"/a.tar.gz": archiveBytes(t, "a.tar.gz", project...), "/a.tar": archiveBytes(t, "a.tar", project...),
		"/a.zip": archiveBytes(t, "a.zip", project...), "/get": archiveBytes(t, "a.zip", project...), "/my job.py": []byte("print(1)"),
		"/lib-1.0.whl": archiveBytes(t, "a.zip", project...),
	})
	s := newSources(t, nil)
	for path, want := range map[string]struct {
		tree []string
		name string
	}{
		"/a.tar.gz": {unpacked, ""}, "/a.tar": {unpacked, ""}, "/a.zip": {unpacked, ""}, "/get?id=3": {unpacked, ""},
		"/my%20job.py": {[]string{"my job.py=print(1)"}, "my job.py"},
		"/lib-1.0.whl": {[]string{"lib-1.0.whl=" + string(archiveBytes(t, "a.zip", project...))}, "lib-1.0.whl"},
	} {
		pinned, dir := fetched(t, s, server.URL+path, nil)
		if diff := cmp.Diff(want.tree, dir.List(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
		if v, err := parseVersion(pinned); err != nil || v.digest == "" || v.name != want.name {
			t.Errorf("%s is pinned to %s", path, pinned)
		}
	}
}

func TestFetchTakesTheCacheAndDownloadsAgainWithoutIt(t *testing.T) {
	t.Parallel()
	var content atomic.Value
	content.Store("print(1)")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, content.Load().(string))
	}))
	defer server.Close()
	first, second := newSources(t, nil), newSources(t, nil)
	url := server.URL + "/job.py"
	pinned, err := first.Pin(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh := archivetest.NewFolder(t)
	if err := second.Fetch(t.Context(), url, pinned, nil, fresh.Root); err != nil {
		t.Errorf("by another process: %v", err)
	}
	content.Store("print(2)")
	dir := archivetest.NewFolder(t)
	if err := first.Fetch(t.Context(), url, pinned, nil, dir.Root); err != nil {
		t.Errorf("from the cache: %v", err)
	}
	if diff := cmp.Diff([]string{"job.py=print(1)"}, dir.List(t)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	third := newSources(t, nil)
	dir = archivetest.NewFolder(t)
	err = third.Fetch(t.Context(), url, pinned, nil, dir.Root)
	if builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(fmt.Sprint(err), "changed since") {
		t.Errorf("changed since it was pinned: %v", err)
	}
	if left := dir.List(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatDidNotChangeIsNotDownloadedAgain(t *testing.T) {
	t.Parallel()
	var full, asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("ETag", `"one"`)
		if r.Header.Get("If-None-Match") == `"one"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		full.Add(1)
		_, _ = io.WriteString(w, "print()")
	}))
	defer server.Close()
	s := newSources(t, nil)
	var versions []string
	for _, env := range []map[string]string{nil, nil, {"GIT_TOKEN": "another tenant"}} {
		v, err := s.Pin(t.Context(), server.URL+"/job.py", env)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v)
	}
	if slices.Sort(versions); versions[0] != versions[2] || asked.Load() != 3 || full.Load() != 2 {
		t.Errorf("%v with %d requests, %d of them full; want 3 and 2", versions, asked.Load(), full.Load())
	}
	if err := s.cache.drop(strings.TrimSuffix(strings.TrimPrefix(versions[0], "sha256:"), ":job.py")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pin(t.Context(), server.URL+"/job.py", nil); err != nil || full.Load() != 3 {
		t.Errorf("evicted: %v with %d full requests, want 3", err, full.Load())
	}
}

func TestServersAnswersAreClassified(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var code int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d.zip", &code); err != nil {
			t.Error(err)
		}
		w.WriteHeader(code)
	}))
	defer server.Close()
	s := newSources(t, nil)
	for code, want := range map[int]builder.Kind{
		401: builder.KindSourceNotFound, 403: builder.KindSourceNotFound, 404: builder.KindSourceNotFound, 410: builder.KindSourceNotFound,
		400: builder.KindSourceNotFound, 204: builder.KindSourceNotFound, 304: builder.KindSourceNotFound,
		408: builder.KindUnavailable, 429: builder.KindUnavailable, 500: builder.KindUnavailable, 503: builder.KindUnavailable,
	} {
		_, err := s.Pin(t.Context(), fmt.Sprintf("%s/%d.zip?X-Amz-Signature=hunter2", server.URL, code), nil)
		if builder.KindOf(err) != want || err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%d: %s: %v, want %s", code, builder.KindOf(err), err, want)
		}
	}
	server.Close()
	if _, err := s.Pin(t.Context(), server.URL+"/x.zip?sig=hunter2", nil); builder.KindOf(err) != builder.KindUnavailable || strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Errorf("nobody there: %v", err)
	}
	if left := cachedFiles(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	t.Parallel()
	seen := func(r *http.Request) string {
		user, password, _ := r.BasicAuth()
		return user + password + r.Header.Get("X-V3io-Session-Key") + r.Header.Get("Referer")
	}
	var stolen, given atomic.Value
	stolen.Store("")
	given.Store("")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen.Store(stolen.Load().(string) + seen(r))
		_, _ = io.WriteString(w, "print()")
	}))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given.Store(given.Load().(string) + seen(r))
		http.Redirect(w, r, other.URL+"/signed?sig=x", http.StatusFound)
	}))
	defer server.Close()
	s := newSources(t, nil)
	host := strings.TrimPrefix(server.URL, "http://")
	for _, url := range []string{"http://me:hunter2@" + host + "/job.py?sig=hunter2", "v3io://" + host + "/c/job.py"} {
		if _, err := s.Pin(t.Context(), url, map[string]string{"V3IO_ACCESS_KEY": "hunter3"}); err != nil {
			t.Error(err)
		}
	}
	if given.Load() != "mehunter2hunter3" || stolen.Load() != "" {
		t.Errorf("own host saw %q, the other %q", given.Load(), stolen.Load())
	}
}

func TestRedirectsAreLimited(t *testing.T) {
	t.Parallel()
	plain := serve(t, map[string][]byte{"/x.py": []byte("x")})
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/loop.py":
			http.Redirect(w, r, "/loop.py", http.StatusFound)
		case "/file.py":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		default:
			http.Redirect(w, r, plain.URL+"/x.py?sig=hunter2", http.StatusFound)
		}
	}))
	defer secure.Close()
	s := newSources(t, func(c *Config) { c.CA = pemOf(secure) })
	for path, says := range map[string]string{"/loop.py": "more than 5", "/down.py": "from HTTPS to http", "/file.py": "file://"} {
		_, err := s.Pin(t.Context(), secure.URL+path, nil)
		if builder.KindOf(err) != builder.KindSourceNotFound || !strings.Contains(fmt.Sprint(err), says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
}

func TestUntrustedServersAreRefused(t *testing.T) {
	t.Parallel()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	secure.Config.ErrorLog = nil
	if _, err := newSources(t, nil).Pin(t.Context(), secure.URL+"/x.zip", nil); builder.KindOf(err) != builder.KindSourceNotFound || !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Errorf("got %s: %v", builder.KindOf(err), err)
	}
}

func TestPlainHTTPAndInnerAddressesNeedTheOperator(t *testing.T) {
	t.Parallel()
	s := newSources(t, nil)
	for url, says := range map[string]string{
		"http://files.example.com/x.zip":                "source.insecure",
		"git+http://git.example.com/x":                  "source.insecure",
		"https://169.254.169.254/latest/meta-data":      "metadata",
		"https://[fe80::1]/x.zip":                       "metadata",
		"https://[::ffff:169.254.169.254]/x.zip":        "metadata",
		"https://[64:ff9b::a9fe:a9fe]/x.zip":            "metadata",
		"https://100.100.100.200/x.zip":                 "metadata",
		"git+https://169.254.169.254/x":                 "metadata",
		"wasbs://container@169.254.169.254/x.zip":       "metadata",
		"v3ios://169.254.169.254/x/y.zip":               "metadata",
		"https://x:hunter2@169.254.169.254/x?hunter2=1": "metadata",
	} {
		_, err := s.Pin(t.Context(), url, nil)
		if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %v, want %q", url, err, says)
		}
	}
	_, err := s.Pin(t.Context(), "s3://bucket/x.zip", map[string]string{"AWS_ENDPOINT_URL": "https://169.254.169.254"})
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), "metadata") {
		t.Errorf("s3 endpoint: %v", err)
	}
}

func TestNamesThatResolveToInnerAddressesAreRefused(t *testing.T) {
	t.Parallel()
	s := newSources(t, nil)
	// What a resolver answered is checked where the connection is made.
	for address, allowed := range map[string]bool{
		"169.254.169.254:80": false, "[fe80::1%eth0]:80": false, "[fd00:ec2::254]:80": false, "127.0.0.1:80": true, "10.0.0.1:80": true,
		"[2001:db8::1]:443": true,
	} {
		if err := s.network.control("tcp", address, nil); (err == nil) != allowed {
			t.Errorf("%s: %v, allowed is %t", address, err, allowed)
		}
	}
}

func TestDownloadsAreBounded(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced.zip" {
			w.Header().Set("Content-Length", "5000000")
		}
		_, _ = io.CopyN(w, archivetest.Zeros{}, 5_000_000)
	}))
	defer server.Close()
	s := newSources(t, func(c *Config) { c.Limits.Download = 1 << 20 })
	for _, path := range []string{"/announced.zip", "/endless.zip"} {
		if _, err := s.Pin(t.Context(), server.URL+path, nil); builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), "1 MiB") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left := cachedFiles(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSlowServersAreGivenUp(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	s := newSources(t, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	_, err := s.Pin(t.Context(), server.URL+"/x.zip", nil)
	if builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(fmt.Sprint(err), "longer than the limit of 50ms") {
		t.Errorf("got %s: %v", builder.KindOf(err), err)
	}
	if left := cachedFiles(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// contexts holds uploaded archives.
type contexts map[string][]byte

func (c contexts) Open(_ context.Context, digest string) (io.ReadCloser, error) {
	raw, ok := c[digest]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", digest, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

func TestUploadedContextsAreFetched(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "job.py"), []byte("print()"), 0o600); err != nil {
		t.Fatal(err)
	}
	digest, _, err := archive.Pack(dir, &packed)
	if err != nil {
		t.Fatal(err)
	}
	stored := contexts{digest: packed.Bytes(), "sha256:" + hexA: []byte("forged")}
	s := newSources(t, func(c *Config) { c.Contexts = stored })
	pinned, tree := fetched(t, s, "context://"+strings.Replace(digest, ":", "-", 1)+".tar.gz", nil)
	if diff := cmp.Diff([]string{"job.py=print()"}, tree.List(t)); diff != "" || pinned != digest {
		t.Errorf("pinned to %s, tree (-want +got):\n%s", pinned, diff)
	}
	for url, want := range map[string]builder.Kind{
		"context://sha256-" + strings.Repeat("0", 64) + ".tar.gz": builder.KindSourceNotFound,
		"context://sha256-" + hexA + ".tar.gz":                    builder.KindUnavailable,
	} {
		if _, err := s.Pin(t.Context(), url, nil); builder.KindOf(err) != want || err == nil {
			t.Errorf("%s: %v, want %s", url, err, want)
		}
	}
	if _, err := newSources(t, nil).Pin(t.Context(), "context://sha256-"+hexA+".zip", nil); builder.KindOf(err) != builder.KindInvalidRequest || err == nil {
		t.Errorf("without a store: %v", err)
	}
}

func TestManyPinAndFetchAtOnceFromOneCache(t *testing.T) {
	t.Parallel()
	content := map[string][]byte{}
	for i := range 8 {
		content[fmt.Sprintf("/%d.tar.gz", i)] = archiveBytes(t, "a.tar.gz", archivetest.Text("n", strings.Repeat(strconv.Itoa(i), 1000)))
	}
	server := serve(t, content)
	shared := t.TempDir()
	// Nothing but one archive fits: every other is evicted while it is used.
	small := func(c *Config) { c.CacheDir, c.CacheSize, c.Limits.Download = shared, 300, 300 }
	both := []*Sources{newSources(t, small), newSources(t, small)}
	var group sync.WaitGroup
	for i := range 32 {
		s, url, dir := both[i%2], fmt.Sprintf("%s/%d.tar.gz", server.URL, i%8), archivetest.NewFolder(t)
		group.Go(func() {
			for try := range 20 {
				pinned, err := s.Pin(t.Context(), url, nil)
				if err == nil {
					err = s.Fetch(t.Context(), url, pinned, nil, dir.Root)
				}
				if err == nil {
					break
				}
				if try == 19 || builder.KindOf(err) != builder.KindUnavailable {
					t.Error(err)
					return
				}
			}
			if diff := cmp.Diff([]string{"n=" + strings.Repeat(strconv.Itoa(i%8), 1000)}, dir.List(t)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
	group.Wait()
	var total int64
	for _, name := range cachedFiles(t, both[0]) {
		info, err := both[0].cache.root.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 300 {
		t.Errorf("the cache holds %d bytes", total)
	}
}

func TestConfigReportsEveryFault(t *testing.T) {
	t.Parallel()
	_, err := New(Config{
		CacheSize: -1, Insecure: []string{"http://x"}, CA: "x", V3IOAPI: "x", Timeout: -1, Limits: archive.Limits{Download: -1, Unpacked: -1, Entries: -1, Ratio: -1, Path: -1},
	})
	for _, want := range []string{"cache directory", "cache size", "insecure host", "CA", "v3io", "timeout", "download", "unpacked", "entries", "ratio", "path limit"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
