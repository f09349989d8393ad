package source

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-git/v6/plumbing"
	"github.com/go-git/go-git/v6/plumbing/format/pktline"
	"github.com/go-git/go-git/v6/plumbing/protocol"
	"github.com/go-git/go-git/v6/plumbing/transport"
	gittcp "github.com/go-git/go-git/v6/plumbing/transport/git"
	githttp "github.com/go-git/go-git/v6/plumbing/transport/http"

	"kiln/builder"
)

const gitHint = "credentials are taken from GIT_TOKEN, or GIT_USERNAME and GIT_PASSWORD, or the URL"

// pinGit asks for the refs of the server. A commit is a version already.
func (s *Sources) pinGit(ctx context.Context, l location, env map[string]string) (version, error) {
	v := version{commit: l.commit, dir: l.dir}
	if l.commit != "" {
		return v, nil
	}
	session, err := s.connect(ctx, l, env)
	if err != nil {
		return version{}, err
	}
	defer session.Close()
	candidates := candidateRefs(l.ref)
	refs, err := session.GetRemoteRefs(ctx, &transport.GetRemoteRefsOptions{RefPrefixes: prefixes(candidates)})
	if errors.Is(err, transport.ErrEmptyRemoteRepository) && l.ref != "" {
		// None that was asked for.
		refs, err = &transport.RemoteRefs{}, nil
	}
	if err != nil {
		return version{}, gitError(err, gitHint)
	}
	hash, ok := pick(refs.References, candidates)
	switch {
	case ok:
		v.commit = hash.String()
		return v, nil
	case l.ref == "":
		return version{}, notFound("the repository has no default branch; name one after a #")
	case len(l.ref) >= 7 && len(l.ref) < 40 && strings.Trim(l.ref, "0123456789abcdef") == "":
		return version{}, notFound("the repository has no branch or tag %s; if it is a commit, give all 40 digits", shown(l.ref))
	default:
		return version{}, notFound("the repository has no branch or tag %s", shown(l.ref))
	}
}

// candidateRefs are the full names that a ref may mean, the first one first.
func candidateRefs(ref string) []string {
	switch {
	case ref == "" || ref == "HEAD":
		return []string{"HEAD"}
	case strings.HasPrefix(ref, "refs/"):
		return []string{ref}
	default:
		return []string{"refs/heads/" + ref, "refs/tags/" + ref}
	}
}

// prefixes asks for the refs and, with those of HEAD, for what HEAD stands for.
func prefixes(candidates []string) []string {
	if candidates[0] == "HEAD" {
		return []string{"HEAD", "refs/heads/"}
	}
	return candidates
}

// pick returns the commit of the first candidate that is there. What an annotated tag
// stands for goes before the tag.
func pick(refs []*plumbing.Reference, candidates []string) (plumbing.Hash, bool) {
	byName := make(map[string]*plumbing.Reference, len(refs))
	for _, ref := range refs {
		byName[ref.Name().String()] = ref
	}
	for _, name := range candidates {
		for _, spelled := range []string{name + "^{}", name} {
			ref := byName[spelled]
			if ref != nil && ref.Type() == plumbing.SymbolicReference {
				ref = byName[ref.Target().String()]
			}
			if ref != nil && ref.Type() == plumbing.HashReference {
				return ref.Hash(), true
			}
		}
	}
	return plumbing.ZeroHash, false
}

// connect opens a session with the server, whose closing ends the connection. It tries
// the ways that the URL can mean, and the forms that a token may have, one after
// another.
func (s *Sources) connect(ctx context.Context, l location, env map[string]string) (transport.Session, error) {
	if l.url.Scheme == "ssh" {
		return s.connectSSH(ctx, l, env)
	}
	ways, err := s.ways(l, env)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, way := range ways {
		session, err := s.connectBy(ctx, way, l, env)
		if err == nil {
			return session, nil
		}
		failed = err
		if !errors.Is(err, errNotHTTP) && !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return nil, failed
}

// ways returns the URLs, of the schemes https, http and git, that l may mean. What
// git:// means can be said by GIT_PULL_METHOD, as to Kaniko.
func (s *Sources) ways(l location, env map[string]string) ([]url.URL, error) {
	as := func(schemes ...string) []url.URL {
		urls := make([]url.URL, len(schemes))
		for i, scheme := range schemes {
			urls[i] = l.url
			urls[i].Scheme = scheme
		}
		return urls
	}
	method := first(env, "GIT_PULL_METHOD")
	switch scheme := l.url.Scheme; {
	case scheme != "git":
		return as(strings.TrimPrefix(scheme, "git+")), nil
	case method == "https" || method == "http" || method == "git":
		return as(method), nil
	case method != "":
		return nil, invalid("GIT_PULL_METHOD must be https, http or git, not %.40q", method)
	case s.network.plain(l.url.Host):
		return as("http", "git"), nil
	default:
		return as("https"), nil
	}
}

func (s *Sources) connectBy(ctx context.Context, u url.URL, l location, env map[string]string) (transport.Session, error) {
	request := &transport.Request{URL: &u, Command: transport.UploadPackService, Protocol: protocol.V2}
	if u.Scheme == "git" {
		if !s.network.plain(u.Host) {
			return nil, invalid("Git's own protocol is not encrypted, and refused for %s; use https, or have the operator list the host (source.insecure)", u.Host)
		}
		session, err := gittcp.NewTransport(gittcp.Options{DialContext: s.network.dial}).Handshake(ctx, request)
		return session, gitError(err, "the server may not export the repository")
	}
	if err := s.network.check(&u); err != nil {
		return nil, err
	}
	var failed error
	for _, authorize := range gitLogins(l, env) {
		session, err := githttp.NewTransport(githttp.Options{
			Client:      s.network.client(&u, nil),
			Credentials: githttp.ForRepositoryOrigin(authorize),
		}).Handshake(ctx, request)
		if err == nil {
			return session, nil
		}
		failed = err
		if !errors.Is(err, transport.ErrAuthenticationRequired) && !errors.Is(err, transport.ErrAuthorizationFailed) {
			break
		}
	}
	return nil, gitError(failed, gitHint)
}

// gitLogins returns what to try, at least one. Tokens are given as hosts want them:
// most take one as password of any user, and some of MLRun's users run servers that
// know only its form, the token as user.
func gitLogins(l location, env map[string]string) []githttp.Authorizer {
	basic := func(user, password string) githttp.Authorizer {
		return func(r *http.Request) error {
			r.SetBasicAuth(user, password)
			return nil
		}
	}
	user, password, token := first(env, "GIT_USERNAME"), first(env, "GIT_PASSWORD"), first(env, "GIT_TOKEN")
	switch {
	case l.user != nil:
		secret, _ := l.user.Password()
		return []githttp.Authorizer{basic(l.user.Username(), secret)}
	case token != "" && strings.EqualFold(l.url.Hostname(), "bitbucket.org"):
		return []githttp.Authorizer{basic("x-token-auth", token)}
	case token != "":
		return []githttp.Authorizer{basic("oauth2", token), basic(token, "x-oauth-basic"), basic(token, "")}
	case password != "":
		return []githttp.Authorizer{basic(user, password)}
	default:
		return []githttp.Authorizer{nil}
	}
}

// errNotHTTP says that a server speaks something else.
var errNotHTTP = errors.New("the server does not speak HTTP")

// gitError classifies an error of the Git library.
func gitError(err error, hint string) error {
	answer, _ := errors.AsType[*githttp.Err](err)
	refusal, _ := errors.AsType[*pktline.ErrorLine](err)
	remote, _ := errors.AsType[*transport.RemoteError](err)
	_, network := errors.AsType[net.Error](err)
	switch {
	case err == nil, isOurs(err):
		return err
	case answer != nil:
		return answered(answer.Status, hint)
	case refusal != nil:
		return notFound("the server says %.200q; %s", refusal.Text, hint)
	case remote != nil:
		return notFound("the server says %.200q; %s", remote.Reason, hint)
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return notFound("the repository is empty")
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return denied(hint)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return notFound("the server has no such repository, or does not show it; %s", hint)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return builder.Errorf(builder.KindUnavailable, "", "%w: %w", errNotHTTP, err)
	case network:
		return err
	default:
		return notFound("there is no Git repository at this address: %w", err)
	}
}

// allRefs returns the tips that a commit is looked for behind: that of the ref, or all.
func allRefs(refs []*plumbing.Reference, ref string) []plumbing.Hash {
	if ref != "" {
		if hash, ok := pick(refs, candidateRefs(ref)); ok {
			return []plumbing.Hash{hash}
		}
	}
	var tips []plumbing.Hash
	for _, r := range refs {
		name := r.Name().String()
		if r.Type() == plumbing.HashReference && (strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/")) &&
			!slices.Contains(tips, r.Hash()) {
			tips = append(tips, r.Hash())
		}
	}
	return tips
}
