package archive

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder/source/archivetest"
)

// local makes a folder of files: "name": content, "name/": "" and "name": "-> target".
func local(tb testing.TB, content map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, text := range content {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			tb.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(text, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o700)
		case link:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(text), 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// packed packs a folder and unpacks it again.
func packed(tb testing.TB, dir string) (digest string, tree []string) {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "packed"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	digest, n, err := Pack(dir, f)
	if err != nil {
		tb.Fatal(err)
	}
	if at, _ := f.Seek(0, io.SeekCurrent); at != n {
		tb.Errorf("Pack() says %d bytes, and wrote %d", n, at)
	}
	to := archivetest.NewFolder(tb)
	if err := Unpack(f, New(tb.Context(), to.Root, Limits{}.WithDefaults())); err != nil {
		tb.Fatal(err)
	}
	return digest, to.List(tb)
}

func TestAFolderIsPackedTheSameEverywhere(t *testing.T) {
	t.Parallel()
	content := map[string]string{
		"b.py": "print()", "a/x": "1", "a/y": "2", "empty/": "", "link": "-> a/x", ".git/config": "secret", "день": "3",
	}
	first, second := local(t, content), local(t, content)
	if err := os.Chmod(filepath.Join(second, "a/x"), 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1, 0)
	if err := os.Chtimes(filepath.Join(second, "b.py"), old, old); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{first, second} {
		if err := os.Chmod(filepath.Join(dir, "b.py"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	digest, tree := packed(t, first)
	again, _ := packed(t, second)
	if digest != again {
		t.Errorf("the same content is %s and %s", digest, again)
	}
	want := []string{"a/", "a/x=1", "a/y=2", "b.py=print()*", "empty/", "link -> a/x", "день=3"}
	if diff := cmp.Diff(want, tree); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(filepath.Join(second, "a/x"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if other, _ := packed(t, second); other == digest {
		t.Error("another content has the same digest")
	}
}

func TestDockerignoreIsHonoured(t *testing.T) {
	t.Parallel()
	content := map[string]string{
		"job.py": "1", "data/big": "2", "data/keep": "3", "logs/x.log": "4", "src/__pycache__/x.pyc": "5", "src/a.py": "6", ".git/config": "7",
	}
	for name, tc := range map[string]struct {
		ignore string
		want   []string
	}{
		"patterns":   {"# big things\n/data\nlogs\n**/__pycache__\n.dockerignore\n", []string{"job.py=1", "src/", "src/a.py=6"}},
		"exceptions": {"data\n!data/keep\nlogs\nsrc\n.dockerignore", []string{"data/", "data/keep=3", "job.py=1"}},
		"all but":    {"*\n!src/*.py", []string{"src/", "src/a.py=6"}},
		"with .git":  {"*\n!.git", []string{".git/", ".git/config=7"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := local(t, content)
			if err := os.WriteFile(filepath.Join(dir, ignoreFile), []byte(tc.ignore), 0o600); err != nil {
				t.Fatal(err)
			}
			_, tree := packed(t, dir)
			if diff := cmp.Diff(tc.want, tree); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatAWorkerWouldRefuseIsNotPacked(t *testing.T) {
	t.Parallel()
	socket := local(t, map[string]string{"a": "1"})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(socket, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for says, dir := range map[string]string{
		"neither file, folder nor link": socket,
		"leads out":                     local(t, map[string]string{"l": "-> ../x"}),
		"absolute":                      local(t, map[string]string{"l": "-> /etc/passwd"}),
		"nothing in it":                 local(t, map[string]string{".git/x": "1"}),
		"UTF-8":                         local(t, map[string]string{"a\xff": "1"}),
		".dockerignore":                 local(t, map[string]string{"a": "1", ".dockerignore": "[a"}),
		"no such file":                  filepath.Join(t.TempDir(), "gone"),
	} {
		if _, _, err := Pack(dir, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

func TestLocalArchivesPassAfterACheck(t *testing.T) {
	t.Parallel()
	for name, ext := range map[string]string{"a.tar.gz": ".tar.gz", "a.tar": ".tar", "a.zip": ".zip"} {
		f := archivetest.File(t, name, []archivetest.Entry{archivetest.Text("job.py", "print()")})
		want, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		digest, n, found, err := PackFile(f.Name(), &got)
		if err != nil || !bytes.Equal(want, got.Bytes()) || n != int64(len(want)) || found != ext || !strings.HasPrefix(digest, "sha256:") {
			t.Errorf("%s: %s, %d, %s, %v", name, digest, n, found, err)
		}
		bad := archivetest.File(t, name, []archivetest.Entry{archivetest.Text("../x", "print()")})
		if _, _, _, err := PackFile(bad.Name(), io.Discard); err == nil || !strings.Contains(err.Error(), "leads out") {
			t.Errorf("hostile %s: %v", name, err)
		}
	}
	text := filepath.Join(local(t, map[string]string{"job.py": "print()"}), "job.py")
	if _, _, _, err := PackFile(text, io.Discard); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a text: %v", err)
	}
}
