package source

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/source/archive"
	"kiln/builder/source/archivetest"
)

func TestEveryKindOfRefIsPinnedAndFetched(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, commits := newRepository(t, root, "repo")
	server := gitServer(t, root, nil)
	s := newSources(t, nil)
	for fragment, want := range map[string]struct{ commit, job string }{
		"":                                     {commits["main"], "print(2)"},
		"#main":                                {commits["main"], "print(2)"},
		"#side":                                {commits["side"], "print(3)"},
		"#refs/heads/side":                     {commits["side"], "print(3)"},
		"#v1":                                  {commits["first"], "print(1)"},
		"#refs/tags/v1":                        {commits["first"], "print(1)"},
		"#HEAD":                                {commits["main"], "print(2)"},
		"#" + commits["first"]:                 {commits["first"], "print(1)"},
		"#refs/heads/main#" + commits["first"]: {commits["first"], "print(1)"},
	} {
		for _, prefix := range []string{"git+" + server.URL, strings.Replace(server.URL, "http", "git", 1)} {
			pinned, dir := fetched(t, s, prefix+"/repo"+fragment, nil)
			if pinned != "git:"+want.commit {
				t.Errorf("%s is pinned to %s, want %s", fragment, pinned, want.commit)
			}
			if diff := cmp.Diff(r.tree(want.job), dir.List(t)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", fragment, diff)
			}
			info, err := dir.Stat("job.py")
			if err != nil || info.ModTime().UTC().Format("2006-01-02") != "2024-01-02" {
				t.Errorf("%s: time is %v (%v), want that of the commit", fragment, info.ModTime(), err)
			}
		}
	}
	if left := cachedFiles(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAFolderOfARepositoryIsATree(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	_, commits := newRepository(t, root, "repo")
	url := "git+" + gitServer(t, root, nil).URL + "/repo"
	s := newSources(t, nil)
	pinned, dir := fetched(t, s, url+"#main:src/app", nil)
	if diff := cmp.Diff([]string{"run.sh=#!/bin/sh*"}, dir.List(t)); diff != "" || pinned != "git:"+commits["main"]+":src/app" {
		t.Errorf("pinned to %s, tree (-want +got):\n%s", pinned, diff)
	}
	for fragment, want := range map[string]builder.Kind{"#main:nothing": builder.KindSourceNotFound, "#main:src": builder.KindInvalidRequest} {
		v, err := s.Pin(t.Context(), url+fragment, nil)
		if err != nil {
			t.Fatal(err)
		}
		empty := archivetest.NewFolder(t)
		err = s.Fetch(t.Context(), url+fragment, v, nil, empty.Root)
		// src/link leads out of src.
		if builder.KindOf(err) != want || err == nil || len(empty.List(t)) > 0 {
			t.Errorf("%s: %v, left %v, want %s", fragment, err, empty.List(t), want)
		}
	}
}

func TestOldServersGiveACommitOnlyWithItsBranch(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, commits := newRepository(t, root, "repo")
	r.git(t, "config", "protocol.version", "0")
	// Without version 2 a server refuses commits that are not the tip of a ref.
	server := gitServer(t, root, func(q *http.Request) bool {
		q.Header.Del("Git-Protocol")
		return true
	})
	s := newSources(t, nil)
	for fragment, job := range map[string]string{
		"#" + commits["first"]: "print(1)", "#refs/heads/main#" + commits["first"]: "print(1)", "#side": "print(3)",
	} {
		_, dir := fetched(t, s, "git+"+server.URL+"/repo"+fragment, nil)
		if diff := cmp.Diff(r.tree(job), dir.List(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", fragment, diff)
		}
	}
	pinned, err := s.Pin(t.Context(), "git+"+server.URL+"/repo#side", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.git(t, "branch", "-f", "side", "main")
	err = s.Fetch(t.Context(), "git+"+server.URL+"/repo#side", pinned, nil, archivetest.NewFolder(t).Root)
	if builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(fmt.Sprint(err), "any more") {
		t.Errorf("a branch that was moved after it was pinned: %s: %v", builder.KindOf(err), err)
	}
}

func TestWhatARepositoryLacksIsNotFound(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	_, commits := newRepository(t, root, "repo")
	emptyRepository(t, root, "empty")
	server := gitServer(t, root, nil)
	web := serve(t, map[string][]byte{"/repo/info/refs": []byte("<html>sign in</html>")})
	s := newSources(t, nil)
	for url, says := range map[string]string{
		"git+" + server.URL + "/repo#gone":                     `no branch or tag "gone"`,
		"git+" + server.URL + "/repo#refs/heads/v1":            "no branch or tag",
		"git+" + server.URL + "/repo#" + commits["first"][:10]: "all 40 digits",
		"git+" + server.URL + "/gone":                          "nothing there",
		"git+" + server.URL + "/empty":                         "empty",
		"git+" + web.URL + "/repo":                             "no Git repository",
	} {
		_, err := s.Pin(t.Context(), url, nil)
		if builder.KindOf(err) != builder.KindSourceNotFound || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("%s: %s: %v, want %q", url, builder.KindOf(err), err, says)
		}
	}
	url := "git+" + server.URL + "/repo#" + commitA
	pinned, err := s.Pin(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Fetch(t.Context(), url, pinned, nil, archivetest.NewFolder(t).Root); builder.KindOf(err) != builder.KindSourceNotFound || !strings.Contains(fmt.Sprint(err), "no commit") {
		t.Errorf("a commit that does not exist: %s: %v", builder.KindOf(err), err)
	}
}

func TestTokensAreGivenAsTheServerWantsThem(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, _ := newRepository(t, root, "repo")
	const token = "t0ken-t0ken"
	for name, tc := range map[string]struct {
		user, password string
		env            map[string]string
		info           string
	}{
		"token as password":         {"", token, map[string]string{"GIT_TOKEN": token}, ""},
		"token as user, as MLRun":   {token, "x-oauth-basic", map[string]string{"GIT_TOKEN": token}, ""},
		"token as user, as Kaniko":  {token, "", map[string]string{"GIT_TOKEN": token}, ""},
		"user and password":         {"me", token, map[string]string{"GIT_USERNAME": "me", "GIT_PASSWORD": token}, ""},
		"in the URL":                {"me", token, map[string]string{"GIT_TOKEN": "of another host"}, "me:" + token + "@"},
		"token as user, in the URL": {token, "", nil, token + "@"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := gitServer(t, root, func(r *http.Request) bool {
				user, password, _ := r.BasicAuth()
				return (tc.user == "" || user == tc.user) && password == tc.password
			})
			s := newSources(t, nil)
			_, dir := fetched(t, s, "git+http://"+tc.info+strings.TrimPrefix(server.URL, "http://")+"/repo", tc.env)
			if diff := cmp.Diff(r.tree("print(2)"), dir.List(t)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			_, err := s.Pin(t.Context(), "git+"+server.URL+"/repo", map[string]string{"GIT_TOKEN": "hunter2hunter2"})
			if builder.KindOf(err) != builder.KindSourceNotFound || !strings.Contains(fmt.Sprint(err), "GIT_TOKEN") || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("a wrong token: %v", err)
			}
		})
	}
}

func TestTokensStayWithTheirServer(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	newRepository(t, root, "repo")
	var stolen atomic.Bool
	other := gitServer(t, root, func(r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			stolen.Store(true)
		}
		return true
	})
	moved := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.String(), http.StatusMovedPermanently)
	}))
	defer moved.Close()
	_, dir := fetched(t, newSources(t, nil), "git+"+moved.URL+"/repo", map[string]string{"GIT_TOKEN": "hunter2"})
	if len(dir.List(t)) == 0 || stolen.Load() {
		t.Errorf("tree %v, the other host saw the token: %t", dir.List(t), stolen.Load())
	}
}

func TestSubmodulesAreFetchedWhenConfigured(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	newRepository(t, root, "lib")
	r, _ := newRepository(t, root, "repo")
	r.git(t, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../lib", "third/lib")
	r.commit(t)
	url := "git+" + gitServer(t, root, nil).URL + "/repo"
	_, without := fetched(t, newSources(t, nil), url, nil)
	if info, err := without.Stat("third/lib"); err != nil || !info.IsDir() {
		t.Errorf("third/lib without submodules: %v", err)
	}
	if _, err := without.Stat("third/lib/job.py"); err == nil {
		t.Error("a submodule was fetched that nobody asked for")
	}
	s := newSources(t, func(c *Config) { c.Submodules = true })
	_, with := fetched(t, s, url+"#main:third", nil)
	want := []string{"lib/", "lib/job.py=print(2)", "lib/src/", "lib/src/app/", "lib/src/app/run.sh=#!/bin/sh*", "lib/src/link -> ../job.py"}
	if diff := cmp.Diff(want, with.List(t)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

func TestLargeRepositoriesAreRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, _ := newRepository(t, root, "repo")
	noise := make([]byte, 1<<20)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		noise[i] = byte(x)
	}
	r.write(t, "noise", string(noise))
	r.commit(t)
	url := "git+" + gitServer(t, root, nil).URL + "/repo"
	for says, limits := range map[string]archive.Limits{"larger than the limit": {Download: 100 << 10}, "unpacked": {Unpacked: 100 << 10}, "limit of 3": {Entries: 3}} {
		s, dir := newSources(t, func(c *Config) { c.Limits = limits }), archivetest.NewFolder(t)
		pinned, err := s.Pin(t.Context(), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Fetch(t.Context(), url, pinned, nil, dir.Root)
		if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("%+v: %s: %v, want %q", limits, builder.KindOf(err), err, says)
		}
		if left := append(dir.List(t), cachedFiles(t, s)...); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestHostileRepositoriesAreRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, _ := newRepository(t, root, "repo")
	blob := r.git(t, "hash-object", "-w", "job.py")
	link := func(target string) string {
		r.write(t, "target", target)
		return r.git(t, "hash-object", "-w", "target")
	}
	url := "git+" + gitServer(t, root, nil).URL + "/repo"
	for name, tc := range map[string]struct{ tree, says string }{
		"symlink out":    {"120000 blob " + link("../../x") + "\tl\n", "leads out"},
		"absolute link":  {"120000 blob " + link("/etc/passwd") + "\tl\n", "absolute"},
		"Git's own":      {"100644 blob " + blob + "\t.GIT\n", "forbids"},
		"up":             {"100644 blob " + blob + "\t..\n", "leads out"},
		"link and below": {"120000 blob " + link("..") + "\ta\n040000 tree " + r.git(t, "rev-parse", "HEAD:src") + "\ta\n", "something else"},
	} {
		file := filepath.Join(root, "tree")
		if err := os.WriteFile(file, []byte(tc.tree), 0o600); err != nil {
			t.Fatal(err)
		}
		made := r.git(t, "-c", "alias.mk=!git mktree <"+file, "mk")
		commit := r.git(t, "commit-tree", "-m", name, made)
		r.git(t, "update-ref", "refs/heads/hostile", commit)
		dir := archivetest.NewFolder(t)
		err := newSources(t, nil).Fetch(t.Context(), url+"#hostile", "git:"+commit, nil, dir.Root)
		if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), tc.says) || len(dir.List(t)) > 0 {
			t.Errorf("%s: %v, left %v, want %q", name, err, dir.List(t), tc.says)
		}
		dir.CheckOutside(t)
	}
}

func TestGitDaemonsAreSpokenToOnLoopback(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, commits := newRepository(t, root, "repo")
	git := gitProgram(t)
	// inetd's part of `git daemon`: one process for each connection.
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			cmd := exec.CommandContext(t.Context(), git, "daemon", "--inetd", "--export-all", "--base-path="+root)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}
			socket, err := conn.(*net.TCPConn).File()
			if err == nil {
				cmd.Stdin, cmd.Stdout = socket, socket
				_ = cmd.Run()
				_ = socket.Close()
			}
			_ = conn.Close()
		}
	}()
	url := "git://" + listener.Addr().String()
	s := newSources(t, nil)
	pinned, dir := fetched(t, s, url+"/repo#side", nil)
	if diff := cmp.Diff(r.tree("print(3)"), dir.List(t)); diff != "" || pinned != "git:"+commits["side"] {
		t.Errorf("pinned to %s, tree (-want +got):\n%s", pinned, diff)
	}
	if _, err := s.Pin(t.Context(), url+"/gone", nil); builder.KindOf(err) != builder.KindSourceNotFound {
		t.Errorf("no such repository: %s: %v", builder.KindOf(err), err)
	}
	for _, method := range []string{"git", "ftp"} {
		_, err := s.Pin(t.Context(), "git://git.example.com/repo", map[string]string{"GIT_PULL_METHOD": method})
		if builder.KindOf(err) != builder.KindInvalidRequest || err == nil {
			t.Errorf("GIT_PULL_METHOD=%s: %v", method, err)
		}
	}
}

func TestGitMeansHTTPSElsewhere(t *testing.T) {
	t.Parallel()
	s := newSources(t, nil)
	for url, want := range map[string]string{
		"git://github.com/org/repo.git": "https://github.com/org/repo.git", "git://127.0.0.1:1/x": "http://127.0.0.1:1/x git://127.0.0.1:1/x",
		"git+https://127.0.0.1/x": "https://127.0.0.1/x",
	} {
		l, err := parse(url)
		if err != nil {
			t.Fatal(err)
		}
		ways, err := s.ways(l, nil)
		var got []string
		for _, w := range ways {
			got = append(got, w.String())
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s means %v, %v; want %s", url, got, err, want)
		}
	}
}
