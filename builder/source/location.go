package source

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"kiln/builder"
	"kiln/builder/source/archive"
)

// maxURL is the longest URL of a source, in bytes.
const maxURL = 8192

// kind is how a source is reached.
type kind int

const (
	kindGit kind = iota + 1
	kindWeb
	kindS3
	kindGS
	kindAzure
	kindV3IO
	kindContext
)

// location is what the text of a source's URL says.
type location struct {
	kind kind
	// url has neither user info nor, for Git, a fragment.
	url url.URL
	// user is the user info of the URL; nil: none.
	user *url.Userinfo
	// bucket and key of object stores.
	bucket, key string
	// ref and commit of Git; both empty: the default branch. With both, ref is where
	// the commit is looked for when the server does not give it by its id.
	ref, commit string
	// dir is the folder of the repository, empty: all of it.
	dir string
	// digest of an uploaded context, "sha256:<hex>".
	digest string
}

// String is the location for people, without credentials.
func (l location) String() string {
	text := l.url.Scheme + "://" + l.url.Host + l.url.Path
	if l.kind == kindGit && !strings.HasPrefix(l.url.Path, "/") { // the short form of SSH
		text = l.url.Host + ":" + l.url.Path
	}
	switch {
	case l.kind == kindContext:
		return "context://" + strings.Replace(l.digest, ":", "-", 1)
	case l.bucket != "":
		return l.url.Scheme + "://" + l.bucket + "/" + l.key
	case l.kind == kindGit && l.ref+l.commit+l.dir != "":
		text += "#" + l.ref
		if l.ref != "" && l.commit != "" {
			text += "#"
		}
		text += l.commit
		if l.dir != "" {
			text += ":" + l.dir
		}
	}
	return text
}

// base is the name of the file that the location ends with, "" if there is none.
func (l location) base() string {
	name := l.key
	if name == "" {
		name = l.url.Path
	}
	if strings.HasSuffix(name, "/") {
		return ""
	}
	if name = path.Base(name); name == "." || name == ".." || name == "/" {
		return ""
	}
	return name
}

func invalid(format string, args ...any) error {
	return builder.Errorf(builder.KindInvalidRequest, "", format, args...)
}

const knownForms = "git://, git+https://, git+ssh://, https://….git, git@host:path, http(s)://, s3://, gs://, az://, wasbs:// and v3io://"

var (
	// scpPattern is the short form of SSH: git@host:path.
	scpPattern     = regexp.MustCompile(`^([A-Za-z0-9._-]+)@([A-Za-z0-9._-]+):([^/\\].*|/[^/].*)$`)
	commitPattern  = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	contextPattern = regexp.MustCompile(`^context://sha256-([0-9a-f]{64})\.(?:tar\.gz|tar|zip)$`)
	refPattern     = regexp.MustCompile(`^[^\x00-\x20~^:?*\[\\\x7f-][^\x00-\x20~^:?*\[\\\x7f]*$`)
	bucketPattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,221}$`)
)

// parse reads the URL of a source. Its errors are of KindInvalidRequest and repeat
// nothing of the URL but its scheme.
func parse(text string) (location, error) {
	switch {
	case text == "":
		return location{}, invalid("the source is empty")
	case len(text) > maxURL:
		return location{}, invalid("the source is longer than %d bytes", maxURL)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return location{}, invalid("the source holds control characters, or is not UTF-8")
	}
	if m := scpPattern.FindStringSubmatch(text); m != nil {
		where, fragment, _ := strings.Cut(m[3], "#")
		l := location{kind: kindGit, url: url.URL{Scheme: "ssh", Host: m[2], Path: where}, user: url.User(m[1])}
		return l, l.readFragment(fragment)
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok || archive.IsPath(text) {
		return location{}, invalid("the source is a path: a worker cannot see your files; "+
			"use `kiln build`, which uploads them, or one of %s", knownForms)
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "git", "git+https", "git+http", "git+ssh", "ssh":
		return parseGit(text)
	case "https", "http":
		if where, _, _ := strings.Cut(rest, "#"); strings.HasSuffix(strings.TrimRight(where, "/"), ".git") {
			return parseGit(text)
		}
		return parseURL(kindWeb, text)
	case "s3", "gs", "gcs", "az":
		return parseObject(scheme, rest)
	case "wasb", "wasbs":
		return parseWasb(scheme, rest)
	case "v3io", "v3ios":
		return parseURL(kindV3IO, text)
	case "context":
		m := contextPattern.FindStringSubmatch(text)
		if m == nil {
			return location{}, invalid("a context must be context://sha256-<64 hex digits>.tar.gz; `kiln build` makes it")
		}
		return location{kind: kindContext, url: url.URL{Scheme: "context"}, digest: "sha256:" + m[1]}, nil
	default:
		return location{}, unknownScheme(scheme)
	}
}

func unknownScheme(scheme string) error {
	switch scheme {
	case "store":
		return invalid("store:// names an artifact in MLRun's database, which a build cannot read; give the URL that the artifact has there (its target_path)")
	case "ds":
		return invalid("ds:// names a datastore profile of MLRun, which a build cannot read; give the URL that the profile stands for")
	case "file":
		return invalid("file:// is a path: a worker cannot see your files; use `kiln build`, which uploads them")
	default:
		return invalid("%.40s:// cannot be a source; use one of %s", scheme, knownForms)
	}
}

// parseURL reads a URL that has a host and a path.
func parseURL(k kind, text string) (location, error) {
	u, err := url.Parse(text)
	if err != nil {
		return location{}, invalid("the source is not a valid URL")
	}
	l := location{kind: k, url: *u, user: u.User}
	l.url.User, l.url.Fragment, l.url.RawFragment = nil, "", ""
	l.url.Scheme = strings.ToLower(l.url.Scheme)
	switch {
	case u.Opaque != "":
		return location{}, invalid("the source is not a valid URL")
	case u.Host == "" && k != kindV3IO:
		return location{}, invalid("the source names no host")
	case strings.Trim(u.Path, "/") == "":
		return location{}, invalid("the source names no path on its host")
	}
	return l, nil
}

func parseGit(text string) (location, error) {
	text, fragment, _ := strings.Cut(text, "#")
	l, err := parseURL(kindGit, text)
	if err != nil {
		return location{}, err
	}
	if l.url.RawQuery != "" || l.url.ForceQuery {
		return location{}, invalid("a Git URL has no query; write branch and folder as #branch:folder, and give credentials as GIT_TOKEN")
	}
	if l.url.Scheme == "git+ssh" {
		l.url.Scheme = "ssh"
	}
	if _, password := l.user.Password(); password && l.url.Scheme == "ssh" {
		return location{}, invalid("an SSH URL has no password; give a private key as GIT_SSH_KEY")
	}
	return l, l.readFragment(fragment)
}

// readFragment reads [ref][#commit][:folder].
func (l *location) readFragment(fragment string) error {
	fragment, dir, hasDir := strings.Cut(fragment, ":")
	if dir = strings.Trim(path.Clean(dir), "/"); hasDir && dir != "." && dir != "" {
		if !fs.ValidPath(dir) {
			return invalid("the folder after # and : leads out of the repository")
		}
		l.dir = dir
	}
	ref, commit, both := strings.Cut(fragment, "#")
	switch {
	case !both && commitPattern.MatchString(ref):
		ref, commit = "", ref
	case both && !commitPattern.MatchString(commit):
		return invalid("what follows the second # of the source is not a commit of 40 or 64 lower-case hex digits")
	}
	if ref != "" && !validRef(ref) {
		return invalid("what follows the # of the source is neither a branch, a tag, a ref nor a commit")
	}
	l.ref, l.commit = ref, commit
	return nil
}

// validRef is the relevant part of https://git-scm.com/docs/git-check-ref-format.
func validRef(ref string) bool {
	return refPattern.MatchString(ref) && !strings.Contains(ref, "..") && !strings.Contains(ref, "//") && !strings.Contains(ref, "@{") &&
		!strings.HasPrefix(ref, "/") && !strings.HasSuffix(ref, "/") && !strings.HasSuffix(ref, ".") && !strings.HasSuffix(ref, ".lock")
}

// parseObject reads bucket/key.
func parseObject(scheme, rest string) (location, error) {
	bucket, key, _ := strings.Cut(rest, "/")
	l := location{url: url.URL{Scheme: scheme}, bucket: bucket, key: objectKey(key)}
	switch scheme {
	case "s3":
		l.kind = kindS3
	case "az":
		l.kind = kindAzure
	default:
		l.kind, l.url.Scheme = kindGS, "gs"
	}
	switch {
	case !bucketPattern.MatchString(bucket):
		return location{}, invalid("the source names no valid bucket: it must be %s://bucket/key, with credentials in the environment", scheme)
	case l.base() == "":
		return location{}, invalid("the source names no file in its bucket")
	}
	return l, nil
}

// objectKey takes ? and # for what they are in a key, and %20 for a space as Kaniko
// does.
func objectKey(text string) string {
	text = strings.TrimLeft(text, "/")
	if key, err := url.PathUnescape(text); err == nil && utf8.ValidString(key) && !strings.ContainsRune(key, 0) {
		return key
	}
	return text
}

// parseWasb reads container@account.blob.core.windows.net/key.
func parseWasb(scheme, rest string) (location, error) {
	where, key, _ := strings.Cut(rest, "/")
	container, host, ok := strings.Cut(where, "@")
	l := location{kind: kindAzure, url: url.URL{Scheme: scheme, Host: host}, bucket: container, key: objectKey(key)}
	if u, err := url.Parse("https://" + host); !ok || err != nil || u.Host != host || host == "" || !bucketPattern.MatchString(container) || l.base() == "" {
		return location{}, invalid("after %s:// there must be container@account.blob.core.windows.net/key", scheme)
	}
	return l, nil
}

// version is what a location stood for.
type version struct {
	// commit of Git, with dir as in location.
	commit, dir string
	// digest is the hex SHA-256 of the bytes of an archive or, if name is not empty, of
	// the single file of that name.
	digest, name string
}

// String is the form of builder.Source.Version.
func (v version) String() string {
	text, part := "sha256:"+v.digest, v.name
	if v.commit != "" {
		text, part = "git:"+v.commit, v.dir
	}
	if part != "" {
		text += ":" + part
	}
	return text
}

func parseVersion(text string) (version, error) {
	scheme, rest, _ := strings.Cut(text, ":")
	id, part, _ := strings.Cut(rest, ":")
	switch raw, err := hex.DecodeString(id); {
	case scheme == "git" && commitPattern.MatchString(id) && (part == "" || fs.ValidPath(part)):
		return version{commit: id, dir: part}, nil
	case scheme == "sha256" && err == nil && len(raw) == 32 && strings.ToLower(id) == id && !strings.Contains(part, "/") && (part == "" || fs.ValidPath(part)):
		return version{digest: id, name: part}, nil
	}
	return version{}, fmt.Errorf("%.100q is not the version of a source", text)
}
