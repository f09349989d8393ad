package source

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

const (
	commitA = "0123456789abcdef0123456789abcdef01234567"
	hexA    = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// brief is what a test says about a location.
type brief struct {
	kind                      kind
	scheme, host, path, query string
	user                      string
	bucket, key               string
	ref, commit, dir, digest  string
}

func briefOf(l location) brief {
	return brief{
		kind: l.kind, scheme: l.url.Scheme, host: l.url.Host, path: l.url.Path, query: l.url.RawQuery, user: l.user.String(),
		bucket: l.bucket, key: l.key, ref: l.ref, commit: l.commit, dir: l.dir, digest: l.digest,
	}
}

func TestEveryFormOfASourceIsUnderstood(t *testing.T) {
	t.Parallel()
	github := brief{kind: kindGit, scheme: "git", host: "github.com", path: "/org/repo.git"}
	with := func(b brief, change func(*brief)) brief { change(&b); return b }
	for text, want := range map[string]brief{
		"git://github.com/org/repo.git":                                      github,
		"git://github.com/org/repo.git#main":                                 with(github, func(b *brief) { b.ref = "main" }),
		"git://github.com/org/repo.git#feature/x":                            with(github, func(b *brief) { b.ref = "feature/x" }),
		"git://github.com/org/repo.git#refs/heads/main":                      with(github, func(b *brief) { b.ref = "refs/heads/main" }),
		"git://github.com/org/repo.git#refs/tags/v1":                         with(github, func(b *brief) { b.ref = "refs/tags/v1" }),
		"git://github.com/org/repo.git#" + commitA:                           with(github, func(b *brief) { b.commit = commitA }),
		"git://github.com/org/repo.git#refs/heads/main#" + commitA:           with(github, func(b *brief) { b.ref, b.commit = "refs/heads/main", commitA }),
		"git://github.com/org/repo.git#refs/heads/main#" + commitA + ":a/b/": with(github, func(b *brief) { b.ref, b.commit, b.dir = "refs/heads/main", commitA, "a/b" }),
		"git://github.com/org/repo.git#main:src/app":                         with(github, func(b *brief) { b.ref, b.dir = "main", "src/app" }),
		"git://github.com/org/repo.git#:src":                                 with(github, func(b *brief) { b.dir = "src" }),
		"git://me:secret@github.com/org/repo.git":                            with(github, func(b *brief) { b.user = "me:secret" }),
		"GIT+HTTPS://host:8443/x":                                            {kind: kindGit, scheme: "git+https", host: "host:8443", path: "/x"},
		"git+http://127.0.0.1:80/x":                                          {kind: kindGit, scheme: "git+http", host: "127.0.0.1:80", path: "/x"},
		"https://host/x.git#v1:d":                                            {kind: kindGit, scheme: "https", host: "host", path: "/x.git", ref: "v1", dir: "d"},
		"git+ssh://git@host/x":                                               {kind: kindGit, scheme: "ssh", host: "host", path: "/x", user: "git"},
		"ssh://git@host:2222/x.git":                                          {kind: kindGit, scheme: "ssh", host: "host:2222", path: "/x.git", user: "git"},
		"git@github.com:org/repo.git#main":                                   {kind: kindGit, scheme: "ssh", host: "github.com", path: "org/repo.git", user: "git", ref: "main"},
		"https://host/a.tar.gz?X-Sig=1#part":                                 {kind: kindWeb, scheme: "https", host: "host", path: "/a.tar.gz", query: "X-Sig=1"},
		"http://host/job.py":                                                 {kind: kindWeb, scheme: "http", host: "host", path: "/job.py"},
		"s3://bucket/a b/c#d?e%20%.zip":                                      {kind: kindS3, scheme: "s3", bucket: "bucket", key: "a b/c#d?e%20%.zip"},
		"s3://bucket/a%20b%25.zip?x#y":                                       {kind: kindS3, scheme: "s3", bucket: "bucket", key: "a b%.zip?x#y"},
		"gcs://bucket/x.zip":                                                 {kind: kindGS, scheme: "gs", bucket: "bucket", key: "x.zip"},
		"az://container/x.zip":                                               {kind: kindAzure, scheme: "az", bucket: "container", key: "x.zip"},
		"wasbs://container@acc.blob.core.windows.net/d/x.zip":                {kind: kindAzure, scheme: "wasbs", host: "acc.blob.core.windows.net", bucket: "container", key: "d/x.zip"},
		"v3io:///projects/x.zip":                                             {kind: kindV3IO, scheme: "v3io", path: "/projects/x.zip"},
		"v3ios://api.host/projects/x.zip":                                    {kind: kindV3IO, scheme: "v3ios", host: "api.host", path: "/projects/x.zip"},
		"context://sha256-" + hexA + ".tar.gz":                               {kind: kindContext, scheme: "context", digest: "sha256:" + hexA},
	} {
		got, err := parse(text)
		if err != nil {
			t.Errorf("parse(%s): %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, briefOf(got), cmp.AllowUnexported(brief{})); diff != "" {
			t.Errorf("parse(%s) (-want +got):\n%s", text, diff)
		}
	}
}

func TestWhatCannotBeASourceIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"":                           "empty",
		".":                          "kiln build",
		"./src":                      "kiln build",
		"/home/mlrun_code":           "kiln build",
		"src/job.py":                 "kiln build",
		"file:///etc/passwd":         "kiln build",
		"store://projects/x#1":       "target_path",
		"ds://profile/x.zip":         "datastore profile",
		"oss://bucket/x.zip":         "use one of",
		"hdfs://host/x":              "use one of",
		"git://":                     "host",
		"git://host":                 "path",
		"git:///x.git":               "host",
		"git://host/x?ref=main":      "query",
		"git://host/x#a b":           "neither",
		"git://host/x#-x":            "neither",
		"git://host/x#a..b":          "neither",
		"git://host/x#main#abc":      "commit",
		"git://host/x#main:../../y":  "leads out",
		"ssh://git:pw@host/x":        "password",
		"https://":                   "host",
		"https://host":               "path",
		"https://host/%zz":           "valid URL",
		"s3://":                      "bucket",
		"s3://bucket":                "file",
		"s3://bucket/dir/":           "file",
		"s3://key:secret@bucket/x":   "bucket",
		"wasb://container/x":         "container@account",
		"context://sha256-00.tar.gz": "64 hex",
		"https://host/a\x00b":        "control",
		"https://host/a\nb":          "control",
		"\xff://x":                   "UTF-8",
		"https://host/" + strings.Repeat("a", maxURL): "longer",
	} {
		err := Check(text)
		if err == nil || builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), says) {
			t.Errorf("Check(%.60q) = %v, want an invalid_request that says %q", text, err, says)
		}
	}
}

func TestPeopleSeeNoCredentialsInALocation(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"git://me:hunter2@host/x.git#main#" + commitA + ":d": "git://host/x.git#main#" + commitA + ":d",
		"https://tok:hunter2@host/x.zip?sig=hunter2":         "https://host/x.zip",
		"git@host:x.git#v1":                 "host:x.git#v1",
		"s3://bucket/key":                   "s3://bucket/key",
		"context://sha256-" + hexA + ".zip": "context://sha256-" + hexA,
	} {
		l, err := parse(text)
		if err != nil || l.String() != want {
			t.Errorf("parse(%s) is shown as %q (%v), want %q", text, l.String(), err, want)
		}
	}
}

func TestVersionsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	for _, v := range []version{
		{commit: commitA}, {commit: hexA, dir: "a/b"}, {digest: hexA}, {digest: hexA, name: "job.py"}, {digest: hexA, name: "a:b"},
	} {
		got, err := parseVersion(v.String())
		if err != nil || got != v {
			t.Errorf("parseVersion(%s) = %+v, %v", v, got, err)
		}
	}
	for _, text := range []string{
		"", "git:", "git:main", "git:" + commitA + ":../x", "sha256:00", "sha256:" + strings.ToUpper(hexA), "sha256:" + hexA + ":a/b",
		"sha256:" + hexA + ":..", "md5:" + hexA,
	} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("parseVersion(%q) = %+v, want an error", text, v)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"git://me:pw@github.com/org/repo.git#refs/heads/main#" + commitA + ":dir", "git@host:path#x", "https://u:p@h/x.git?q#r",
		"s3://bucket/a/../b", "wasbs://c@a.b/x", "v3io:///x", "context://sha256-" + hexA + ".zip", "store://x", "./x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := parse(text)
		if err != nil {
			if builder.KindOf(err) != builder.KindInvalidRequest {
				t.Fatalf("parse(%q): kind %s", text, builder.KindOf(err))
			}
			return
		}
		if l.kind == 0 {
			t.Fatalf("parse(%q) has no kind", text)
		}
		if base := l.base(); strings.Contains(base, "/") || base == ".." || base == "." {
			t.Fatalf("base of %q is %q", text, base)
		}
		if strings.HasPrefix(l.dir, "..") || strings.HasPrefix(l.dir, "/") || (l.commit != "" && !commitPattern.MatchString(l.commit)) {
			t.Fatalf("parse(%q) = %+v", text, l)
		}
		// A password must not be shown.
		if password, ok := l.user.Password(); ok && len(password) > 8 && strings.Count(l.String(), password) > strings.Count(text, password)-1 {
			t.Fatalf("%q is shown as %q", text, l)
		}
		if l.kind == kindGit && l.url.Scheme != "ssh" {
			if _, err := url.Parse(l.url.String()); err != nil {
				t.Fatalf("parse(%q) is no URL: %v", text, err)
			}
		}
	})
}
