// Package secrets reads the secrets of projects from a folder and from environment
// variables, for engines without a cluster.
//
// The folder has a folder for each project with a file for each secret, which is what
// a Kubernetes secret looks like where it is mounted:
//
//	<dir>/<project>/<NAME>
//
// A mount's "..data" link is followed once per reading, so that a rotation under way
// never mixes old values with new ones. Names that begin with a dot and folders are
// passed over. The value is the file, byte by byte: a newline at the end is part of it
// (write files with printf, not with echo). A file may be 100 KiB long, since builds
// see it as one environment variable, and a project may have 1000 of 1 MiB together.
//
// The variable
//
//	KILN_PROJECT_SECRET__<PROJECT>__<NAME>
//
// is the secret NAME of a project, whose name is in upper case with every run of
// characters other than letters and digits as one "_": my-proj and my.proj are both
// MY_PROJ, and share it. Where both places have a secret, the folder's is taken.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"kiln/builder"
)

const (
	envPrefix = "KILN_PROJECT_SECRET__"
	separator = "__"

	maxValue   = 100 << 10
	maxTotal   = 1 << 20
	maxSecrets = 1000
	maxName    = 253
)

// Config of a Store. The zero value knows no secret.
type Config struct {
	// Dir holds a folder for each project. Empty: none. It is looked at when secrets are
	// read, so that projects may come and go.
	Dir string
	// Environ are variables as os.Environ returns them; those of other names are ignored.
	Environ []string
}

// Store implements builder.SecretStore. It keeps nothing but the variables: a file is
// read whenever its project is asked for. Safe for concurrent use.
type Store struct {
	dir string
	env []string
}

// New returns a Store. A Dir that is set must be a folder.
func New(c Config) (*Store, error) {
	if c.Dir != "" {
		if info, err := os.Stat(c.Dir); err != nil {
			return nil, fmt.Errorf("folder of secrets: %w", err)
		} else if !info.IsDir() {
			return nil, fmt.Errorf("folder of secrets: %s is not a folder", c.Dir)
		}
	}
	s := &Store{dir: c.Dir}
	for _, variable := range c.Environ {
		if rest, ok := strings.CutPrefix(variable, envPrefix); ok {
			s.env = append(s.env, rest)
		}
	}
	return s, nil
}

// Secrets implements builder.SecretStore. A project that neither place knows has no
// secrets. A name that cannot be that of a folder is an error of KindInvalidRequest;
// every other error is of KindUnavailable, names the secret and never holds a value.
func (s *Store) Secrets(_ context.Context, project string) (map[string]string, error) {
	op := "reading the secrets of project " + fmt.Sprintf("%.80q", project)
	if err := checkProject(project); err != nil {
		return nil, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	found := s.fromEnv(project)
	files, err := s.fromDir(project)
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
	}
	maps.Copy(found, files)
	return found, nil
}

// checkProject refuses names that mean something else in a path, and those that a mount
// keeps for itself.
func checkProject(project string) error {
	switch {
	case project == "" || len(project) > maxName:
		return fmt.Errorf("a name has 1 to %d bytes", maxName)
	case strings.HasPrefix(project, "."):
		return errors.New("a name does not begin with a dot")
	case strings.ContainsAny(project, "/\\\x00") || !filepath.IsLocal(project):
		return errors.New("a name is not a path")
	default:
		return nil
	}
}

func (s *Store) fromEnv(project string) map[string]string {
	found := map[string]string{}
	prefix := envName(project) + separator
	for _, variable := range s.env {
		rest, ok := strings.CutPrefix(variable, prefix)
		if name, value, _ := strings.Cut(rest, "="); ok && name != "" {
			found[name] = value
		}
	}
	return found
}

// envName never holds two "_" in a row, so that the separator is where it seems to be:
// project a has no part in the secrets of project a--b.
func envName(project string) string {
	words := strings.FieldsFunc(strings.ToUpper(project), func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	return strings.Join(words, "_")
}

func (s *Store) fromDir(project string) (map[string]string, error) {
	if s.dir == "" {
		return nil, nil
	}
	dir, err := openProject(s.dir, project)
	if dir == nil || err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list the folder: %w", err)
	}
	found, total := map[string]string{}, 0
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		value, isFile, err := readSecret(dir, name)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", name, err)
		}
		if !isFile {
			continue
		}
		found[name] = value
		if total += len(value); len(found) > maxSecrets || total > maxTotal {
			return nil, fmt.Errorf("the project has more than %d secrets, or more than %d KiB of them", maxSecrets, maxTotal>>10)
		}
	}
	return found, nil
}

// openProject opens the project's folder, or the version of it that a mount's link
// names now; nil is a project without one. No link leads out of the folder that it
// is in.
func openProject(dir, project string) (*os.Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of secrets: %w", err)
	}
	defer root.Close()
	folder, err := root.OpenRoot(project)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the project's folder: %w", err)
	}
	version, err := folder.OpenRoot("..data")
	if errors.Is(err, fs.ErrNotExist) {
		return folder, nil
	}
	defer folder.Close()
	if err != nil {
		return nil, fmt.Errorf("open the project's mount: %w", err)
	}
	return version, nil
}

// readSecret reads a file. It opens nothing else: a pipe would never end.
func readSecret(dir *os.Root, name string) (value string, isFile bool, err error) {
	info, err := dir.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return "", false, err
	}
	file, err := dir.Open(name)
	if err != nil {
		return "", false, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxValue+1))
	switch {
	case err != nil:
		return "", false, err
	case len(raw) > maxValue:
		return "", false, fmt.Errorf("is longer than %d KiB", maxValue>>10)
	default:
		return string(raw), true, nil
	}
}
