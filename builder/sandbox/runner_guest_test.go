package sandbox

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/run"
	"kiln/builder/run/runtest"
)

// shellPlan runs a script in an image with busybox.
func shellPlan(image, name, script string) run.Plan {
	plan := runtest.NewPlan(image, name)
	plan.Commands = []run.Command{{Needs: "sh", Args: []string{"sh", "-c", script}}}
	return plan
}

// busybox returns an image with a shell.
func busybox(t *testing.T, host string) string {
	t.Helper()
	base := enginetest.PushBase(t, host+"/base")
	return strings.TrimSuffix(base.Ref, ":latest") + "@" + base.Digest
}

// ran runs the plan and returns its log, without the runner's lines.
func ran(t *testing.T, r *Runner, plan run.Plan) string {
	t.Helper()
	log := &runtest.Log{}
	result, err := r.Run(t.Context(), plan, run.Watch{Logs: log})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("exit code %d, error %v; log:\n%s", result.ExitCode, err, log)
	}
	_, text, _ := strings.Cut(log.String(), "--\n")
	return text
}

func TestProcessSeesNothingOfTheHost(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	plan := shellPlan(busybox(t, site.host), t.Name(), `
		echo --; id -u; cat /proc/self/uid_map /proc/self/gid_map
		grep -e '^Cap[EPBA]' -e NoNewPrivs -e '^Seccomp:' /proc/self/status
		env; echo $$; ls /run/kiln; touch /run/kiln/x /run/kiln/init 2>/dev/null && echo writable
		mount -t tmpfs x /tmp 2>/dev/null && echo mounts; unshare -U true 2>/dev/null && echo unshares
		echo more >/dev/stdout; ls /proc | grep -c '^[0-9]'; cat /etc/hosts | grep -c kiln-run`)
	plan.Env = []run.Var{{Name: "A", Value: "b"}}
	got := strings.Join(strings.Fields(ran(t, r, plan)), " ")
	for _, want := range []string{
		"0 0 1073741824 65536 0 1073741824 65536", "CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 0000000000000000",
		"NoNewPrivs: 1", "Seccomp: 2", " A=b ", "KILN_RESULTS=/run/kiln/out/results.json", " init out spec.json more ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	for _, never := range []string{"writable", "mounts", "unshares", "KILN_TEST", "GOPATH", "/root/go"} {
		if strings.Contains(got, never) {
			t.Errorf("%q is in\n%s", never, got)
		}
	}
}

func TestRunsShareAnImageAndNotTheirChanges(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	image := busybox(t, site.host)
	for i := range 2 {
		script := `echo --; cat /etc/group | wc -l; rm -r /etc/group /usr; echo x >/new; ls / | tr '\n' ' '; stat -c %u:%g /home/user/file`
		if diff := cmp.Diff("2\nbin dev etc home new proc root run sys tmp var 1000:1000\n", ran(t, r, shellPlan(image, t.Name()+strconv.Itoa(i), script))); diff != "" {
			t.Errorf("run %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestImagesUserIsFound(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	for user, want := range map[string]string{"": "0 0 /home", "7": "7 0 /home", "7:8": "7 8 /home", "1000:1000": "1000 1000 /home"} {
		image := site.push(t, "u", func(c *v1.Config) { c.User = user })
		plan := runtest.NewPlan(image, t.Name()+user, "out", "--", "cat", "/proc/self/status", "pwd")
		text := ran(t, r, plan)
		var got []string
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 1 && (f[0] == "Uid:" || f[0] == "Gid:") {
				got = append(got, f[1])
			}
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if have := strings.Join(append(got, lines[len(lines)-1]), " "); have != want {
			t.Errorf("user %q: %s, want %s", user, have, want)
		}
	}
	for _, user := range []string{"nobody-knows", "70000", "-1"} {
		image := site.push(t, "u", func(c *v1.Config) { c.User = user })
		if _, err := r.Run(t.Context(), runtest.NewPlan(image, t.Name()+user), run.Watch{}); builder.KindOf(err) != builder.KindInvalidRequest {
			t.Errorf("user %q: %v, want invalid_request", user, err)
		}
	}
}

// tree is a Sources with one file.
type tree struct{}

func (tree) Fetch(_ context.Context, url, version string, env map[string]string, dir *os.Root) error {
	if version == "sha256:missing" {
		return builder.Errorf(builder.KindSourceNotFound, "fetching the source", "there is none")
	}
	return dir.WriteFile("main.txt", []byte(url+" "+version+" "+env["GIT_TOKEN"]+"\n"), 0o600)
}

func TestSourceIsThereWhenTheRunStarts(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	cfg.Sources = tree{}
	r := runner(t, cfg)
	plan := runtest.NewPlan(site.image, t.Name(), "out", "--", "pwd", "cat", "main.txt")
	plan.Source = &builder.Source{URL: "git://x/y.git", Target: "/home/code", Version: "git:1234"}
	plan.SourceEnv, plan.Workdir = map[string]string{"GIT_TOKEN": "t"}, "/home/code"
	if got, want := ran(t, r, plan), "/home/code\ngit://x/y.git git:1234 t\n"; got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
	for version, kind := range map[string]builder.Kind{"sha256:missing": builder.KindSourceNotFound, "": builder.KindInvalidRequest} {
		plan := runtest.NewPlan(site.image, t.Name()+"bad"+version)
		plan.Source = &builder.Source{URL: "u", Target: "/code", Version: version}
		if _, err := r.Run(t.Context(), plan, run.Watch{}); builder.KindOf(err) != kind {
			t.Errorf("version %q: %v, want %s", version, err, kind)
		}
	}
}

func TestSecretsAreNotOnDiskWhileTheProcessRuns(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	plan := runtest.NewPlan(site.image, t.Name(), "out", "here", "wait")
	plan.Secrets = []run.Var{{Name: "TOKEN", Value: "hush-5678"}}
	ctx, cancel := context.WithCancel(t.Context())
	log, done := &runtest.Log{}, make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, plan, run.Watch{Logs: log})
		done <- err
	}()
	log.Await(t, "here\n")
	startIsComplete(t, r, plan)
	err := filepath.WalkDir(r.state.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/images/") {
			return err
		}
		raw, err := os.ReadFile(path)
		if strings.Contains(string(raw), "hush-5678") {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	cancel()
	<-done
}

func TestLayersAreAppliedInOrderAndStayInside(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	r := runner(t, runConfig(t, site))
	dir := func(name string) runtest.Entry {
		return runtest.Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
	}
	file := func(name, text string) runtest.Entry {
		return runtest.Entry{Header: tar.Header{Name: name, Mode: 0o644}, Data: []byte(text)}
	}
	link := func(kind byte, name, target string) runtest.Entry {
		return runtest.Entry{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}}
	}
	ref := runtest.Push(t, site.host+"/layers", []v1.Layer{
		runtest.Layer(t, dir("./a/"), file("./a/old", "1"), file("a/kept", "1"), dir("b"), file("b/gone", "1"), file("b/stays", "1"), file("c", "1"),
			file("was-file", "1"), dir("was-dir"), file("was-dir/x", "1"), link(tar.TypeSymlink, "abs", "/a"), link(tar.TypeSymlink, "out", "../../../..")),
		runtest.Layer(t, file("a/.wh..wh..opq", ""), file("a/new", "2"), file("b/.wh.gone", ""), file(".wh.c", ""), link(tar.TypeLink, "hard", "b/stays"),
			dir("was-file"), file("was-file/y", "2"), file("was-dir", "2"), file("abs/through", "2"), file("out/evil", "2"), file("../../up", "2"),
			file("deep/er/file", "2"), runtest.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "device"}}, file(".wh..", ""),
			runtest.Entry{Header: tar.Header{Name: "suid", Mode: 0o4755, Uid: 5, Gid: 6}}),
	}, v1.Config{})
	image, err := r.images.get(t.Context(), r.cfg.Images, ref, "", func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	defer image.release()
	got := map[string]string{}
	err = filepath.WalkDir(image.dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, image.dir)
		if err == nil && d.Type().IsRegular() {
			var raw []byte
			raw, err = os.ReadFile(path)
			got[name] = string(raw)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/a/new": "2", "/a/through": "2", "/b/stays": "1", "/hard": "1", "/was-file/y": "2", "/was-dir": "2", "/evil": "2", "/up": "2",
		"/deep/er/file": "2", "/suid": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(image.dir, "suid"))
	if err != nil || info.Mode() != fs.ModeSetuid|0o755 {
		t.Errorf("mode is %v (%v)", info.Mode(), err)
	}
}

func TestImagesThatAreTooLargeOrBrokenAreRefused(t *testing.T) {
	t.Parallel()
	needContainers(t)
	site := newRunSite(t)
	cfg := runConfig(t, site)
	cfg.ImageSize = 1000
	r := runner(t, cfg)
	_, err := r.Run(t.Context(), runtest.NewPlan(site.image, t.Name()), run.Watch{})
	if builder.KindOf(err) != builder.KindDiskFull || !errors.Is(err, errTooLarge) {
		t.Errorf("got %v, want disk_full", err)
	}
	if left := children(r.images.root.Name()); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

// BenchmarkTinyRun is a run of a process that does nothing, of an image that is unpacked.
func BenchmarkTinyRun(b *testing.B) {
	needContainers(b)
	site := newRunSite(b)
	r := runner(b, runConfig(b, site))
	i := 0
	for b.Loop() {
		i++
		if _, err := r.Run(b.Context(), runtest.NewPlan(site.image, fmt.Sprint(b.Name(), i)), run.Watch{}); err != nil {
			b.Fatal(err)
		}
	}
}
