package builder

import (
	"context"
	"os"
)

// Source is the code that goes into an image.
type Source struct {
	// URL is where it comes from, in one of the forms of builder/source. It may hold
	// credentials.
	URL string
	// Target is the folder of the image that it goes to, an absolute path.
	Target string
	// Owner is the numeric owner in the image, "uid:gid". Empty: root.
	Owner string
	// First puts it before the commands and requirements, as MLRun does, else it comes
	// after them: a changed source then leaves what they made as it is.
	First bool
	// Order says in a sentence why it comes first or last.
	Order string
	// Version is what the URL stood for when it was pinned: "git:<commit>[:<folder>]",
	// "sha256:<hex>" of the bytes of an archive, or "sha256:<hex>:<name>" of a single
	// file. The same version is always the same tree. Empty: not pinned yet.
	Version string
}

// Sources finds and fetches code; builder/source implements it. Env holds the
// variables that credentials are taken from, such as GIT_TOKEN or
// AWS_SECRET_ACCESS_KEY. Implementations are safe for concurrent use; their errors
// are of this package's *Error, and do not repeat credentials.
type Sources interface {
	// Pin returns the version of what url stands for now.
	Pin(ctx context.Context, url string, env map[string]string) (version string, err error)
	// Fetch writes the tree of that version into dir, which is empty. Nothing is written
	// outside of dir, and no link in it leads out of it. A tree that is not the
	// version's is an error.
	Fetch(ctx context.Context, url, version string, env map[string]string, dir *os.Root) error
}

// SecretStore knows the secrets of projects. Implementations are safe for concurrent
// use; their errors are of this package's *Error.
type SecretStore interface {
	// Secrets returns the secrets of a project by name. A project without any has an
	// empty map.
	Secrets(ctx context.Context, project string) (map[string]string, error)
}
