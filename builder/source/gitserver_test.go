package source

import (
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// repository is a real Git repository with a history:
//
//	v1 (annotated tag) - main (default branch) ; side
type repository struct {
	root, name string
}

// gitProgram skips the test without Git.
func gitProgram(tb testing.TB) string {
	tb.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		tb.Skip("SKIPPED: no git; get it with: apt-get install git")
	}
	return git
}

func (r repository) git(tb testing.TB, args ...string) string {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), gitProgram(tb), append([]string{"-C", filepath.Join(r.root, r.name)}, args...)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.root, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=c", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=2024-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2024-01-02T03:04:05Z",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r repository) write(tb testing.TB, name, content string) {
	tb.Helper()
	name = filepath.Join(r.root, r.name, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func (r repository) commit(tb testing.TB) string {
	tb.Helper()
	r.git(tb, "add", "-A")
	r.git(tb, "commit", "-q", "--allow-empty", "-m", "change")
	return r.git(tb, "rev-parse", "HEAD")
}

func emptyRepository(tb testing.TB, root, name string) repository {
	tb.Helper()
	r := repository{root: root, name: name}
	if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
		tb.Fatal(err)
	}
	r.git(tb, "init", "-q", "-b", "main")
	return r
}

// newRepository returns a repository and its commits by name.
func newRepository(tb testing.TB, root, name string) (repository, map[string]string) {
	tb.Helper()
	r := emptyRepository(tb, root, name)
	commits := map[string]string{}
	r.write(tb, "job.py", "print(1)")
	r.write(tb, "src/app/run.sh", "#!/bin/sh")
	if err := os.Chmod(filepath.Join(root, name, "src/app/run.sh"), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.Symlink("../job.py", filepath.Join(root, name, "src/link")); err != nil {
		tb.Fatal(err)
	}
	commits["first"] = r.commit(tb)
	r.git(tb, "tag", "-a", "v1", "-m", "v1")
	r.git(tb, "branch", "side")
	r.write(tb, "job.py", "print(2)")
	commits["main"] = r.commit(tb)
	r.git(tb, "checkout", "-q", "side")
	r.write(tb, "job.py", "print(3)")
	commits["side"] = r.commit(tb)
	r.git(tb, "checkout", "-q", "main")
	return r, commits
}

// tree is what is in the repository with the given job.py.
func (repository) tree(job string) []string {
	return []string{"job.py=" + job, "src/", "src/app/", "src/app/run.sh=#!/bin/sh*", "src/link -> ../job.py"}
}

// gitServer serves the repositories below root by smart HTTP, as Git does itself.
func gitServer(tb testing.TB, root string, allow func(*http.Request) bool) *httptest.Server {
	tb.Helper()
	backend := &cgi.Handler{
		Path: gitProgram(tb), Args: []string{"http-backend"},
		Env: []string{
			"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + root,
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		InheritEnv: []string{"PATH"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if allow != nil && !allow(r) {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// The protocol's version arrives as a header, which CGI calls HTTP_GIT_PROTOCOL.
		handler := *backend
		handler.Env = append(handler.Env, "GIT_PROTOCOL="+r.Header.Get("Git-Protocol"))
		handler.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	return server
}
