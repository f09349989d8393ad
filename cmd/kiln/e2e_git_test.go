//go:build e2e || kube

package main

import (
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Secrets of projects.
const (
	gitToken      = "ghp-e2e-7f3a9c41d2"
	projectSecret = "hush-5d41402abc4b2a76"
)

// gitRepository serves a repository with the branch main by Git's own HTTP backend, at an
// address of this machine, to whoever has the token.
func gitRepository(t *testing.T, ip, token string) (dir, address string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "code.git")
	git(t, root, "init", "-q", "-b", "main", dir)
	commit(t, dir, "print('zero')")
	program, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: program, Args: []string{"http-backend"}, InheritEnv: []string{"PATH"},
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != token && password != token {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler := *backend
		handler.Env = append(handler.Env, "GIT_PROTOCOL="+r.Header.Get("Git-Protocol"))
		handler.ServeHTTP(w, r)
	}))
	_ = srv.Listener.Close()
	if srv.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(ip, "0")); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return dir, "git+" + srv.URL + "/code.git"
}

// commit makes main.py say something else and returns the commit.
func commit(t *testing.T, dir, text string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "add", "main.py")
	git(t, dir, "-c", "user.name=e2e", "-c", "user.email=e2e@example.com", "commit", "-qm", text)
	return strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return string(out)
}
