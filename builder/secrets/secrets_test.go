package secrets_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/secrets"
)

var _ builder.SecretStore = (*secrets.Store)(nil)

// write makes files, with their folders, below a new folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func link(t *testing.T, dir, target, name string) {
	t.Helper()
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func store(t *testing.T, c secrets.Config) *secrets.Store {
	t.Helper()
	s, err := secrets.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func check(t *testing.T, s *secrets.Store, project string, want map[string]string) {
	t.Helper()
	got, err := s.Secrets(t.Context(), project)
	if err != nil {
		t.Fatalf("project %s: %v", project, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("secrets of %s (-want +got):\n%s", project, diff)
	}
}

func TestAProjectHasTheFilesOfItsFolder(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"demo/GIT_TOKEN": "abc", "demo/EMPTY": "", "demo/WITH_NEWLINE": "abc\n", "demo/.hidden": "x", "demo/sub/X": "x",
		"other/GIT_TOKEN": "other's", "file": "not a project",
	})
	s := store(t, secrets.Config{Dir: dir})
	check(t, s, "demo", map[string]string{"GIT_TOKEN": "abc", "EMPTY": "", "WITH_NEWLINE": "abc\n"})
	check(t, s, "other", map[string]string{"GIT_TOKEN": "other's"})
	check(t, s, "nobody", map[string]string{})
	check(t, store(t, secrets.Config{}), "demo", map[string]string{})
}

func TestAMountedSecretIsReadThroughItsLinks(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"demo/..2026_01/TOKEN": "old", "demo/..2026_02/TOKEN": "new", "demo/..2026_02/MORE": "m"})
	project := filepath.Join(dir, "demo")
	link(t, project, "..2026_01", "..data")
	link(t, project, "..data/TOKEN", "TOKEN")
	s := store(t, secrets.Config{Dir: dir})
	check(t, s, "demo", map[string]string{"TOKEN": "old"})

	// The kubelet replaces the link, then adds links of new keys.
	link(t, project, "..2026_02", "..data_tmp")
	if err := os.Rename(filepath.Join(project, "..data_tmp"), filepath.Join(project, "..data")); err != nil {
		t.Fatal(err)
	}
	check(t, s, "demo", map[string]string{"TOKEN": "new", "MORE": "m"})
}

func TestOneMountMayHoldAllProjects(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"..2026_01/demo/TOKEN": "abc"})
	link(t, dir, "..2026_01", "..data")
	link(t, dir, "..data/demo", "demo")
	check(t, store(t, secrets.Config{Dir: dir}), "demo", map[string]string{"TOKEN": "abc"})
}

func TestNoNameAndNoLinkLeadsOutOfTheFolder(t *testing.T) {
	t.Parallel()
	outside := write(t, map[string]string{"TOKEN": "outside"})
	dir := write(t, map[string]string{"demo/A": "a", "other/B": "b"})
	link(t, dir, outside, "absolute")
	link(t, filepath.Join(dir, "demo"), filepath.Join(outside, "TOKEN"), "TOKEN")
	link(t, filepath.Join(dir, "other"), "../demo/A", "A")
	s := store(t, secrets.Config{Dir: dir})
	for project, kind := range map[string]builder.Kind{
		"":                             builder.KindInvalidRequest,
		".":                            builder.KindInvalidRequest,
		"..":                           builder.KindInvalidRequest,
		"../" + filepath.Base(outside): builder.KindInvalidRequest,
		"demo/../other":                builder.KindInvalidRequest,
		"demo/A":                       builder.KindInvalidRequest,
		outside:                        builder.KindInvalidRequest,
		"..data":                       builder.KindInvalidRequest,
		`demo\x`:                       builder.KindInvalidRequest,
		"demo\x00":                     builder.KindInvalidRequest,
		strings.Repeat("a", 254):       builder.KindInvalidRequest,
		"absolute":                     builder.KindUnavailable,
		"demo":                         builder.KindUnavailable,
		"other":                        builder.KindUnavailable,
	} {
		got, err := s.Secrets(t.Context(), project)
		if builder.KindOf(err) != kind || err == nil || len(got) > 0 {
			t.Errorf("project %.40q: got %v, %v; want an error of kind %s", project, got, err, kind)
		}
		if err != nil && strings.Contains(err.Error(), "outside") {
			t.Errorf("project %.40q: the error holds the value: %v", project, err)
		}
	}
}

func TestOnlyFilesAreOpened(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"demo/A": "a"})
	if err := unix.Mkfifo(filepath.Join(dir, "demo", "PIPE"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, store(t, secrets.Config{Dir: dir}), "demo", map[string]string{"A": "a"})
}

func TestSizesAreLimited(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 100<<10)
	many := map[string]string{}
	for i := range 11 {
		many["sum/S"+string(rune('A'+i))] = large
	}
	many["one/LARGE"] = large + "x"
	many["fits/LARGE"] = large
	s := store(t, secrets.Config{Dir: write(t, many)})
	check(t, s, "fits", map[string]string{"LARGE": large})
	for project, says := range map[string]string{"one": "LARGE", "sum": "1024 KiB"} {
		_, err := s.Secrets(t.Context(), project)
		if builder.KindOf(err) != builder.KindUnavailable || err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "xxxx") {
			t.Errorf("project %s: got %.200v, want an error with %q", project, err, says)
		}
	}
}

func TestVariablesAreSecretsOfTheirProject(t *testing.T) {
	t.Parallel()
	s := store(t, secrets.Config{Environ: []string{
		"KILN_PROJECT_SECRET__MY_PROJ__GIT_TOKEN=a=b", "KILN_PROJECT_SECRET__MY__TOKEN=my",
		"KILN_PROJECT_SECRET__MY__A__B=ab", "KILN_PROJECT_SECRET__MY__=nameless", "KILN_PROJECT_SECRET__MY=x",
		"KILN_PROJECT_SECRET__A_B__X=only a-b's", "KILN_PROJECT_SECRET____X=nobody's", "HOME=/root",
	}})
	check(t, s, "my-proj", map[string]string{"GIT_TOKEN": "a=b"})
	check(t, s, "my", map[string]string{"TOKEN": "my", "A__B": "ab"})
	check(t, s, "a--b", map[string]string{"X": "only a-b's"})
	check(t, s, "a", map[string]string{})
	check(t, s, "proj", map[string]string{})
}

func TestTheFolderGoesBeforeVariables(t *testing.T) {
	t.Parallel()
	s := store(t, secrets.Config{
		Dir:     write(t, map[string]string{"demo/A": "file"}),
		Environ: []string{"KILN_PROJECT_SECRET__DEMO__A=variable", "KILN_PROJECT_SECRET__DEMO__B=variable"},
	})
	check(t, s, "demo", map[string]string{"A": "file", "B": "variable"})
}

func TestAFolderThatIsNoneIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"file": ""})
	for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "missing")} {
		if _, err := secrets.New(secrets.Config{Dir: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("New(%s): got %v, want an error that names it", path, err)
		}
	}
}

func TestAFolderThatWentAwayIsOursToRetry(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"secrets/demo/A": "a"})
	s := store(t, secrets.Config{Dir: filepath.Join(dir, "secrets")})
	if err := os.RemoveAll(filepath.Join(dir, "secrets")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secrets(t.Context(), "demo"); err == nil || builder.KindOf(err) != builder.KindUnavailable {
		t.Errorf("got %v, want an error of kind unavailable: without it builds would go on without secrets", err)
	}
}

func TestReadersDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	s := store(t, secrets.Config{Dir: write(t, map[string]string{"demo/A": "a"}), Environ: []string{"KILN_PROJECT_SECRET__DEMO__B=b"}})
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			got, err := s.Secrets(t.Context(), "demo")
			if err != nil {
				t.Error(err)
				return
			}
			got["C"] = "each reader has a map of its own"
		})
	}
	readers.Wait()
	check(t, s, "demo", map[string]string{"A": "a", "B": "b"})
}

func FuzzSecrets(f *testing.F) {
	for _, project := range []string{"demo", "..", "a/b", "..data", "\x00", ".", "A-b.c", strings.Repeat("ä", 300)} {
		f.Add(project)
	}
	f.Fuzz(func(t *testing.T, project string) {
		base := write(t, map[string]string{"secrets/demo/A": "in", "TOKEN": "out", "x/TOKEN": "out"})
		s := store(t, secrets.Config{Dir: filepath.Join(base, "secrets")})
		got, err := s.Secrets(t.Context(), project)
		for name, value := range got {
			if value != "in" {
				t.Errorf("project %q reads %s=%s", project, name, value)
			}
		}
		if kind := builder.KindOf(err); err != nil && kind != builder.KindInvalidRequest && kind != builder.KindUnavailable {
			t.Errorf("project %q: %v", project, err)
		}
	})
}
