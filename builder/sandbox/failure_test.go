package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/enginetest"
	"kiln/builder/registry"
)

// site is a registry with a base image.
type site struct {
	reg  *enginetest.Registry
	base builder.Image
}

func newSite(tb testing.TB) site {
	tb.Helper()
	reg := enginetest.NewRegistry(tb)
	return site{reg: reg, base: enginetest.PushBase(tb, reg.Host+"/base")}
}

func (s site) plan(tb testing.TB, instructions ...string) builder.Plan {
	tb.Helper()
	return enginetest.NewPlan(s.base, s.reg.Host+"/team/image", tb.Name(), instructions...)
}

func TestFailuresSayWhoseFaultTheyAre(t *testing.T) {
	t.Parallel()
	const big = "RUN dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null; sleep 5; cat /big >/dev/null"
	for name, tc := range map[string]struct {
		root   string
		change func(*builder.Plan)
		run    string
		kind   builder.Kind
		says   string
	}{
		"command exits 7": {RootAuto, nil, "RUN echo bye; exit 7", builder.KindCommandFailed, "exit code 7"},
		"no shell": {
			RootAuto, func(p *builder.Plan) {
				p.Dockerfile = "FROM scratch\nRUN true\n"
				p.Base = builder.Image{Ref: builder.Scratch}
			},
			"", builder.KindCommandFailed, "/bin/sh",
		},
		"base is gone": {
			RootAuto, func(p *builder.Plan) { p.Dockerfile = strings.Replace(p.Dockerfile, "/base@", "/gone@", 1) },
			"RUN true", builder.KindBaseNotFound, "gone",
		},
		"too much memory": {
			RootTmpfs, func(p *builder.Plan) { p.Limits.Memory, p.Limits.Disk = 64*mib, 64*mib },
			`RUN x=$(yes | head -c 400000000); echo "${#x}"`, builder.KindOutOfMemory, "64 MiB",
		},
		"too much memory on disk": {
			RootDisk, func(p *builder.Plan) { p.Limits.Memory = 64 * mib },
			`RUN x=$(yes | head -c 400000000); echo "${#x}"`, builder.KindOutOfMemory, "64 MiB",
		},
		"tmpfs full": {RootTmpfs, func(p *builder.Plan) { p.Limits.Disk = 20 * mib }, "RUN dd if=/dev/zero of=/big bs=1M count=200", builder.KindDiskFull, "20 MiB"},
		"disk limit": {RootDisk, func(p *builder.Plan) { p.Limits.Disk = 50 * mib }, big, builder.KindDiskFull, "50 MiB"},
		"too many processes": {
			RootAuto, func(p *builder.Plan) { p.Limits.PIDs = 30 },
			"RUN for i in $(seq 100); do sleep 5 & done; wait", builder.KindCommandFailed, "exit code",
		},
		"time over":         {RootAuto, func(p *builder.Plan) { p.Limits.Timeout = time.Second }, "RUN sleep 60", builder.KindTimeout, "1s"},
		"reserved argument": {RootAuto, func(p *builder.Plan) { p.BuildArgs = []builder.Arg{{Name: "LD_PRELOAD", Value: "/x"}} }, "RUN true", builder.KindInvalidRequest, "LD_PRELOAD"},
		"path out of the context": {
			RootAuto, func(p *builder.Plan) {
				p.Context = []builder.File{{Name: "../../etc/x", Data: []byte("x"), Mode: 0o644}}
			},
			"RUN true", builder.KindInvalidRequest, "../../etc/x",
		},
		"bad build id": {RootAuto, func(p *builder.Plan) { p.BuildID = "../../x" }, "RUN true", builder.KindInvalidRequest, "build id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			cfg.Root = tc.root
			e, s := engine(t, cfg), newSite(t)
			plan := s.plan(t, tc.run)
			if tc.change != nil {
				tc.change(&plan)
			}
			var logs strings.Builder
			began := time.Now()
			_, err := e.Run(t.Context(), plan, &logs)
			if _, ok := errors.AsType[*builder.Error](err); !ok || builder.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %s: %v\nwant %s with %q\n%s", builder.KindOf(err), err, tc.kind, tc.says, logs.String())
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			if left := leftovers(t, e); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestBuildThatOutgrowsMemoryMovesToDisk(t *testing.T) {
	t.Parallel()
	e, s := engine(t, testConfig(t)), newSite(t)
	plan := s.plan(t, "RUN echo started; dd if=/dev/zero of=/big bs=1M count=60 && rm /big")
	e.cfg.TmpfsBudget = gib
	plan.Limits.Disk = 20 * gib
	plan.Base.Size = 1
	// The reservation is what the plan may use, so it is made small by hand.
	b := &build{engine: e, plan: plan, logs: &strings.Builder{}, name: "kiln-outgrow-1", firstID: e.cfg.SubUIDBase}
	b.plan.Limits = e.cfg.limits(plan.Limits)
	if _, err := b.runIn(t.Context(), place{tmpfs: true, size: 30 * mib}); !errors.Is(err, errOutgrown) {
		t.Fatalf("on a small tmpfs: %v, want errOutgrown", err)
	}
	if _, err := b.runIn(t.Context(), place{size: b.plan.Limits.Disk}); err != nil {
		t.Errorf("on disk: %v", err)
	}
}

func TestContainerIsClosed(t *testing.T) {
	t.Parallel()
	e, s := engine(t, testConfig(t)), newSite(t)
	plan := s.plan(t, `RUN \
try() { if "$@" >/dev/null 2>&1; then echo "OPEN: $*"; else echo "closed: $1"; fi; }; \
try cat /proc/1/environ; \
try sh -c 'echo x >/proc/1/fd/2'; \
try cat /proc/1/mem; \
try mount -t tmpfs none /mnt; \
try umount /dev/kiln; \
try unshare -U true; \
try unshare -m true; \
try mknod /sda b 8 0; \
try sh -c 'echo x >/dev/kiln/config.json'; \
try mv /dev/kiln /dev/other; \
try mv /dev /other; \
try sh -c 'echo x >>/kaniko/executor'; \
try sh -c 'echo x >/proc/sys/kernel/hostname'; \
try sh -c 'echo c >/proc/sysrq-trigger'; \
try ls /root/../../../../work; \
kill -9 1; \
env; id; cat /proc/self/uid_map; cat /dev/kiln/config.json`)
	plan.Secrets = []builder.Secret{{ID: "A", Value: "hush-hush"}}
	var logs strings.Builder
	if _, err := e.Run(t.Context(), plan, &logs); err != nil {
		t.Fatalf("Run: %v\n%s", err, logs.String())
	}
	if strings.Contains(logs.String(), "\nOPEN: ") {
		t.Errorf("something is open:\n%s", logs.String())
	}
	if got := strings.Count(logs.String(), "\nclosed: "); got != 15 {
		t.Errorf("%d things are closed, want 15:\n%s", got, logs.String())
	}
	for _, secret := range []string{"hush-hush", "KILN_SECRET", "DOCKER_CONFIG", "FF_KANIKO"} {
		if strings.Contains(logs.String(), secret) {
			t.Errorf("a command sees %s:\n%s", secret, logs.String())
		}
	}
	if !strings.Contains(logs.String(), "65536") || !strings.Contains(logs.String(), "uid=0(root)") {
		t.Errorf("ids are not mapped:\n%s", logs.String())
	}
}

func TestCredentialsReachTheRegistryAndNoCommand(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	s := newSite(t)
	dockerConfig := filepath.Join(t.TempDir(), "config.json")
	entry := `{"auths":{"` + s.reg.Host + `":{"username":"robot","password":"hush-hush-7"},"other.example.com":{"auth":"b3RoZXI6b3RoZXI="}}}`
	if err := os.WriteFile(dockerConfig, []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	s.reg.Fault(enginetest.BasicAuth("robot", "hush-hush-7"))
	cfg.Registries = images(t, registry.Config{DockerConfig: dockerConfig})
	e := engine(t, cfg)
	plan := s.plan(t, "RUN cat /dev/kiln/config.json; cat /proc/1/environ; env; grep -r 'hush-hush-[7]' /kaniko /etc /root /tmp || echo nothing")
	var logs strings.Builder
	result, err := e.Run(t.Context(), plan, &logs)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs.String())
	}
	if strings.Contains(logs.String(), "hush-hush-7") || !strings.Contains(logs.String(), "\nnothing\n") {
		t.Errorf("a command sees credentials:\n%s", logs.String())
	}
	ref, err := name.ParseReference(plan.Destination)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref, remote.WithAuth(&authn.Basic{Username: "robot", Password: "hush-hush-7"}))
	if err != nil || desc.Digest.String() != result.Digest {
		t.Errorf("the registry has %v (%v), want %s", desc, err, result.Digest)
	}
	plan.BuildID = strings.Repeat("1", 64)
	if err := os.WriteFile(dockerConfig, []byte(strings.ReplaceAll(entry, "hush-hush-7", "wrong")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Run(t.Context(), plan, &logs); builder.KindOf(err) != builder.KindPullDenied && builder.KindOf(err) != builder.KindPushDenied {
		t.Errorf("with a wrong password: %v, want denied", err)
	}
}

func TestStateDirHasOneOwner(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	first := engine(t, cfg)
	if _, err := New(t.Context(), cfg); !errors.Is(err, ErrStateInUse) {
		t.Fatalf("second New: %v, want ErrStateInUse", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	engine(t, cfg)
}

func TestWhatIsMissingIsListedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Config{StateDir: t.TempDir(), Executor: "/nowhere/executor", Runtime: "no-such-runtime"})
	if err == nil {
		t.Fatal("New works without runtime and executor")
	}
	for _, want := range []string{"no-such-runtime", "apt-get install runc", "/nowhere/executor", "make bin/kaniko-executor"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
}

// TestMain also serves as the process that TestCrash kills.
func TestMain(m *testing.M) {
	if os.Getenv("KILN_TEST_CRASH") != "" {
		crash()
	}
	os.Exit(m.Run())
}

// crash runs a build that never ends.
func crash() {
	fatal := func(err error) {
		_, _ = os.Stdout.WriteString("error: " + err.Error() + "\n")
		os.Exit(1)
	}
	e, err := New(context.Background(), Config{
		Executor: os.Getenv("KILN_TEST_EXECUTOR"), StateDir: os.Getenv("KILN_TEST_CRASH"), Root: os.Getenv("KILN_TEST_ROOT"),
	})
	if err != nil {
		fatal(err)
	}
	plan := enginetest.NewPlan(builder.Image{Ref: os.Getenv("KILN_TEST_BASE") + ":latest", Digest: os.Getenv("KILN_TEST_DIGEST")},
		os.Getenv("KILN_TEST_BASE"), "crash", "RUN echo waiting; trap '' TERM INT HUP; sleep 600")
	_, err = e.Run(context.Background(), plan, os.Stdout)
	fatal(err)
}

func TestCrashLeavesNothingForever(t *testing.T) {
	t.Parallel()
	for _, root := range []string{RootTmpfs, RootDisk} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			cfg, s := testConfig(t), newSite(t)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), "KILN_TEST_CRASH="+cfg.StateDir, "KILN_TEST_EXECUTOR="+cfg.Executor, "KILN_TEST_ROOT="+root,
				"KILN_TEST_BASE="+strings.TrimSuffix(s.base.Ref, ":latest"), "KILN_TEST_DIGEST="+s.base.Digest)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			seen := ""
			for buf := make([]byte, 4096); !strings.Contains(seen, "waiting\n"); {
				n, err := out.Read(buf)
				if seen += string(buf[:n]); err != nil {
					t.Fatalf("the process that is to crash ended: %s", seen)
				}
			}
			pids := containerProcesses(cfg.StateDir)
			if len(pids) == 0 {
				t.Fatal("no container runs")
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			// The guard ends the container, whether a new process comes or not.
			deadline := time.Now().Add(15 * time.Second)
			for len(alive(pids)) > 0 && root == RootTmpfs && time.Now().Before(deadline) {
				time.Sleep(20 * time.Millisecond)
			}
			if left := alive(pids); len(left) > 0 && root == RootTmpfs {
				t.Errorf("processes %v of the container outlive the crash", left)
			}
			e := engine(t, cfg)
			if left := append(leftovers(t, e), alive(pids)...); len(left) > 0 {
				t.Errorf("New left behind: %v", left)
			}
		})
	}
}

// containerProcesses returns the processes whose root is a build root of the state
// directory: those in its cgroups.
func containerProcesses(state string) []string {
	path, err := filepath.EvalSymlinks(state)
	if err != nil {
		return nil
	}
	mark := markOf(path)
	var pids []string
	for _, entry := range children("/proc") {
		if _, err := strconv.Atoi(entry); err != nil {
			continue
		}
		raw, err := os.ReadFile("/proc/" + entry + "/cgroup")
		if err == nil && strings.Contains(string(raw), "/kiln/"+mark+"/") {
			pids = append(pids, entry)
		}
	}
	return pids
}

func alive(pids []string) []string {
	var left []string
	for _, text := range pids {
		pid, err := strconv.Atoi(text)
		if err != nil {
			continue
		}
		state, err := os.ReadFile("/proc/" + text + "/stat")
		if err == nil && unix.Kill(pid, 0) == nil && !strings.Contains(string(state), ") Z ") {
			left = append(left, "process "+text)
		}
	}
	return left
}
