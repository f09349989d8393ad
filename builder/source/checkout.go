package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"strings"

	"github.com/go-git/go-billy/v6/osfs"
	gitconfig "github.com/go-git/go-git/v6/config"
	"github.com/go-git/go-git/v6/plumbing"
	gitcache "github.com/go-git/go-git/v6/plumbing/cache"
	"github.com/go-git/go-git/v6/plumbing/filemode"
	"github.com/go-git/go-git/v6/plumbing/object"
	"github.com/go-git/go-git/v6/plumbing/transport"
	"github.com/go-git/go-git/v6/storage/filesystem"

	"kiln/builder"
	"kiln/builder/source/archive"
)

// Bounds of Git repositories.
const (
	// largeObject is the size from which objects are not kept in memory.
	largeObject = 16 << 20
	// maxSubmodules is how many submodules are fetched, those of submodules included.
	maxSubmodules = 100
)

// checkout writes the tree of a commit, with folders of submodules that are empty
// unless they are configured to be fetched.
func (s *Sources) checkout(ctx context.Context, l location, commit string, env map[string]string, t *archive.Tree) error {
	c := &checkout{sources: s, ctx: ctx, env: env, tree: t}
	return c.repository(l, commit, "")
}

// checkout is the work for one source.
type checkout struct {
	sources    *Sources
	ctx        context.Context //nolint:containedctx // one checkout is one operation
	env        map[string]string
	tree       *archive.Tree
	submodules int
}

// submodule is a commit of another repository.
type submodule struct {
	// name is the place in the tree that is written, at the one in its repository.
	name, at string
	commit   string
}

// repository writes the tree of a commit below a prefix.
func (c *checkout) repository(l location, id, prefix string) error {
	dir, remove, err := c.sources.cache.tempFolder()
	if err != nil {
		return err
	}
	defer remove()
	fs, err := osfs.FromRoot(dir)
	if err != nil {
		return unavailable("open a folder of the source cache", err)
	}
	store := filesystem.NewStorageWithOptions(fs, gitcache.NewObjectLRU(largeObject), filesystem.Options{
		ExclusiveAccess: true, LargeObjectThreshold: largeObject,
	})
	defer store.Close()
	if err := c.sources.fetchCommit(c.ctx, l, id, c.env, &boundedStore{Storage: store, limit: c.sources.cfg.Limits.Download}); err != nil {
		return err
	}
	commit, err := findCommit(store, plumbing.NewHash(id))
	if err != nil {
		return damaged(err)
	}
	if prefix == "" {
		c.tree.Fixed = commit.Committer.When.UTC()
	}
	top, err := commit.Tree()
	if err != nil {
		return damaged(err)
	}
	start := top
	if l.dir != "" {
		if start, err = top.Tree(l.dir); err != nil {
			return notFound("the repository has no folder %s at commit %s", shown(l.dir), id)
		}
	}
	var modules []submodule
	if err := c.write(store, start, prefix, l.dir, &modules); err != nil {
		return err
	}
	if !c.sources.cfg.Submodules || len(modules) == 0 {
		return nil
	}
	return c.fetchSubmodules(l, top, modules)
}

// write writes a tree object below a prefix; at is its place in the repository.
func (c *checkout) write(store *filesystem.Storage, from *object.Tree, prefix, at string, modules *[]submodule) error {
	for _, e := range from.Entries {
		if strings.EqualFold(e.Name, ".git") || strings.Contains(e.Name, "/") {
			return invalid("the repository holds an entry %s, which Git forbids", shown(e.Name))
		}
		name, here := path.Join(prefix, e.Name), path.Join(at, e.Name)
		var err error
		switch e.Mode {
		case filemode.Dir:
			var sub *object.Tree
			if sub, err = object.GetTree(store, e.Hash); err != nil {
				return damaged(err)
			}
			if err = c.tree.Folder(name, archive.ZipEpoch()); err == nil {
				err = c.write(store, sub, name, here, modules)
			}
		case filemode.Submodule:
			*modules = append(*modules, submodule{name: name, at: here, commit: e.Hash.String()})
			err = c.tree.Folder(name, archive.ZipEpoch())
		case filemode.Regular, filemode.Deprecated, filemode.Executable, filemode.Symlink:
			err = c.blob(store, e, name)
		default:
			err = invalid("the repository holds %s, of the unknown mode %s", shown(name), e.Mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checkout) blob(store *filesystem.Storage, e object.TreeEntry, name string) error {
	blob, err := object.GetBlob(store, e.Hash)
	if err != nil {
		return damaged(err)
	}
	r, err := blob.Reader()
	if err != nil {
		return damaged(err)
	}
	defer r.Close()
	switch e.Mode {
	case filemode.Symlink:
		target, err := io.ReadAll(io.LimitReader(r, int64(c.sources.cfg.Limits.Path)+1))
		if err != nil {
			return damaged(err)
		}
		return c.tree.Link(name, string(target), archive.ZipEpoch())
	case filemode.Executable:
		return c.tree.File(name, 0o755, archive.ZipEpoch(), blob.Size, r)
	default:
		return c.tree.File(name, 0o644, archive.ZipEpoch(), blob.Size, r)
	}
}

// fetchSubmodules writes the submodules of a repository whose URLs .gitmodules names.
func (c *checkout) fetchSubmodules(l location, top *object.Tree, modules []submodule) error {
	file, err := top.File(".gitmodules")
	if err != nil {
		return nil //nolint:nilerr // Git leaves such folders empty, too
	}
	text, err := file.Contents()
	if err != nil {
		return damaged(err)
	}
	list := gitconfig.NewModules()
	if err := list.Unmarshal([]byte(text)); err != nil {
		return invalid("the repository's .gitmodules cannot be read")
	}
	urls := make(map[string]string, len(list.Submodules))
	for _, m := range list.Submodules {
		urls[path.Clean(m.Path)] = m.URL
	}
	for _, m := range modules {
		text, ok := urls[m.at]
		if !ok {
			continue
		}
		if c.submodules++; c.submodules > maxSubmodules {
			return invalid("the repository has more than %d submodules", maxSubmodules)
		}
		if err := c.submodule(l, text, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *checkout) submodule(parent location, text string, m submodule) error {
	l, err := relativeTo(parent, text)
	if err != nil {
		return fmt.Errorf("submodule %s: %w", shown(m.at), err)
	}
	inner := *c
	if l.url.Hostname() == parent.url.Hostname() && l.url.Port() == parent.url.Port() {
		if l.user == nil && l.url.Scheme == parent.url.Scheme {
			l.user = parent.user
		}
	} else {
		// Credentials are for the host that they were given for.
		inner.env = nil
	}
	err = inner.repository(l, m.commit, m.name)
	c.submodules = inner.submodules
	if err != nil {
		return fmt.Errorf("submodule %s: %w", shown(m.at), err)
	}
	return nil
}

// relativeTo reads the URL of a submodule, which may be relative to its parent's.
func relativeTo(parent location, text string) (location, error) {
	if !strings.HasPrefix(text, "./") && !strings.HasPrefix(text, "../") {
		l, err := parse(text)
		if err == nil && l.kind == kindWeb { // .gitmodules names nothing but repositories
			l.kind = kindGit
		}
		if err == nil && l.kind != kindGit {
			err = invalid("its URL is not that of a Git repository")
		}
		return l, err
	}
	l := location{kind: kindGit, url: parent.url}
	l.url.Path, l.url.RawPath = path.Join(parent.url.Path, text), ""
	if l.url.Path == "/" || l.url.Path == "." || strings.HasPrefix(l.url.Path, "..") {
		return location{}, invalid("its relative URL leads nowhere")
	}
	return l, nil
}

// fetchCommit fetches a commit without its history or, where the server does not give
// a commit by its id, with that of the refs.
func (s *Sources) fetchCommit(ctx context.Context, l location, id string, env map[string]string, store *boundedStore) error {
	session, err := s.connect(ctx, l, env)
	if err != nil {
		return err
	}
	want := plumbing.NewHash(id)
	err = session.Fetch(ctx, store, &transport.FetchRequest{Wants: []plumbing.Hash{want}, Depth: 1})
	_ = session.Close()
	if _, network := errors.AsType[net.Error](err); err == nil || network || isOurs(err) || ctx.Err() != nil {
		return err
	}
	if session, err = s.connect(ctx, l, env); err != nil {
		return err
	}
	defer session.Close()
	refs, err := session.GetRemoteRefs(ctx, nil)
	if err != nil {
		return gitError(err, gitHint)
	}
	if err := session.Fetch(ctx, store, &transport.FetchRequest{Wants: allRefs(refs.References, l.ref)}); err != nil {
		return gitError(err, gitHint)
	}
	if store.HasEncodedObject(want) == nil {
		return nil
	}
	if l.commit == "" {
		// Pinned from a ref that was moved since: to be pinned again.
		return unavailable("fetch what was pinned", fmt.Errorf("the repository has no commit %s any more", id))
	}
	return notFound("the repository has no commit %s in any branch or tag", id)
}

// maxTagChain is how many tags may name one another before the commit.
const maxTagChain = 40

// findCommit returns a commit, which a tag may name.
func findCommit(store *filesystem.Storage, id plumbing.Hash) (*object.Commit, error) {
	commit, err := object.GetCommit(store, id)
	for range maxTagChain {
		if err == nil {
			return commit, nil
		}
		tag, terr := object.GetTag(store, id)
		if terr != nil {
			return nil, err
		}
		id = tag.Target
		commit, err = object.GetCommit(store, id)
	}
	return nil, err
}

func damaged(err error) error {
	if isOurs(err) {
		return err
	}
	return builder.Errorf(builder.KindSourceNotFound, "", "the repository is damaged: %w", err)
}

// boundedStore bounds the size of the pack that it stores.
type boundedStore struct {
	*filesystem.Storage
	limit int64
}

// PackfileWriter implements storer.PackfileWriter.
func (b *boundedStore) PackfileWriter() (io.WriteCloser, error) {
	w, err := b.Storage.PackfileWriter()
	if err != nil {
		return nil, unavailable("write to the source cache", err)
	}
	return &boundedWriter{WriteCloser: w, limit: b.limit, left: b.limit}, nil
}

type boundedWriter struct {
	io.WriteCloser
	limit, left int64
}

// Write implements io.Writer.
func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, tooLarge(b.limit)
	}
	return b.WriteCloser.Write(p)
}
