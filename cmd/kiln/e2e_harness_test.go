//go:build e2e || bench || kube || chaos || load

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events"
	"kiln/schemas"
)

// program returns the path of kiln: KILN_TEST_PROGRAM, else it builds it, with kilnd and
// kiln-init beside it, once for all tests of the package.
var program = sync.OnceValues(func() (string, error) {
	if made := os.Getenv("KILN_TEST_PROGRAM"); made != "" {
		return made, nil
	}
	dir, err := filepath.Abs("../../bin/e2e")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", dir, ".", "../kilnd", "../kiln-init").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return filepath.Join(dir, "kiln"), nil
})

// requirements skips the test loudly when the machine cannot run the sandbox.
func requirements(t *testing.T) (executor string) {
	t.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		missing = append(missing, "runc (apt-get install runc)")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		missing = append(missing, "/bin/busybox (apt-get install busybox-static)")
	}
	executor = os.Getenv("KILN_TEST_EXECUTOR")
	if executor == "" {
		executor, _ = filepath.Abs("../../bin/kaniko-executor")
	}
	if _, err := os.Stat(executor); err != nil {
		missing = append(missing, executor+" (make build)")
	}
	if len(missing) > 0 {
		t.Skipf("SKIPPED: the real sandbox needs %s", strings.Join(missing, ", "))
	}
	return executor
}

// kiln is a running `kiln up`.
type kiln struct {
	dir, bin string
	cmd      *exec.Cmd
	exited   chan error
	out      *lockedBuffer
	NATSURL  string `json:"nats_url"`
	Registry string `json:"registry"`
	HTTP     string `json:"http"`
	env      []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// up starts `kiln up` in dir and waits until it is ready. It is stopped with the test.
func up(t *testing.T, dir string, env ...string) *kiln {
	t.Helper()
	return upAt(t, dir, "127.0.0.1:0", env...)
}

// upAt is up with a given address of the registry.
func upAt(t *testing.T, dir, registry string, env ...string) *kiln {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return upWith(t, bin, dir, registry, env...)
}

// upWith is upAt with a program of one's own.
func upWith(t *testing.T, bin, dir, registry string, env ...string) *kiln {
	t.Helper()
	executor := requirements(t)
	k := &kiln{dir: dir, bin: bin, out: &lockedBuffer{}, exited: make(chan error, 1)}
	k.env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME=", "KILN_SANDBOX_EXECUTOR="+executor)
	k.env = append(k.env, env...)
	k.cmd = exec.Command(bin, "up", "--data-dir", dir, "--nats-addr", "127.0.0.1:0", "--registry-addr", registry, "--http-addr", "127.0.0.1:0")
	k.cmd.Env, k.cmd.Stdout, k.cmd.Stderr = k.env, k.out, k.out
	_ = os.Remove(filepath.Join(dir, "kiln.json"))
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { k.exited <- k.cmd.Wait() }()
	t.Cleanup(func() { k.stop(t) })
	await(t, time.Minute, "kiln up to be ready", func() bool {
		select {
		case err := <-k.exited:
			t.Fatalf("kiln up ended: %v\n%s", err, k.out)
		default:
		}
		raw, err := os.ReadFile(filepath.Join(dir, "kiln.json"))
		return err == nil && json.Unmarshal(raw, k) == nil && k.NATSURL != ""
	})
	return k
}

// stop ends the process softly, once.
func (k *kiln) stop(t *testing.T) {
	t.Helper()
	if k.cmd == nil {
		return
	}
	_ = k.cmd.Process.Signal(os.Interrupt)
	select {
	case err := <-k.exited:
		if err != nil {
			t.Errorf("kiln up ended with %v\n%s", err, k.out)
		}
	case <-time.After(90 * time.Second):
		_ = k.cmd.Process.Kill()
		t.Errorf("kiln up did not stop\n%s", k.out)
	}
	k.cmd = nil
	if t.Failed() {
		t.Logf("kiln up printed:\n%s", k.out)
	}
}

// kill ends the process as a power cut would.
func (k *kiln) kill(t *testing.T) {
	t.Helper()
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-k.exited
	k.cmd = nil
}

// run executes a kiln command against the running instance.
func (k *kiln) run(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	cmd := exec.CommandContext(ctx, k.bin, args...)
	cmd.Env = append(slices.Clone(k.env), "KILN_NATS_URL="+k.NATSURL)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		return out.String(), errs.String() + err.Error(), -1
	}
	return out.String(), errs.String(), 0
}

func await(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// js connects as any NATS client would.
func (k *kiln) js(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(k.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// cloudEvent is an event as somebody without Kiln's code sees it.
type cloudEvent struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Type        string          `json:"type"`
	Data        json.RawMessage `json:"data"`
	subject     string
}

func (w cloudEvent) field(t *testing.T, path ...string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(w.Data, &v); err != nil {
		t.Fatal(err)
	}
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	return v
}

// emitted reads every emitted event about builds, each checked against its schema.
func emitted(t *testing.T, js jetstream.JetStream) []cloudEvent {
	t.Helper()
	return emittedOn(t, js, "BUILD")
}

// emittedOn is emitted for another stream.
func emittedOn(t *testing.T, js jetstream.JetStream, name string) []cloudEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stream, err := js.Stream(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var all []cloudEvent
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		msg, err := stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		if events.Type(msg.Subject).Asked() {
			continue
		}
		w := cloudEvent{subject: msg.Subject}
		if err := json.Unmarshal(msg.Data, &w); err != nil {
			t.Fatalf("%s is not JSON: %v", msg.Subject, err)
		}
		if err := schemas.Validate(msg.Subject, w.Data); err != nil {
			t.Errorf("%s breaks its schema: %v\n%s", msg.Subject, err, w.Data)
		}
		all = append(all, w)
	}
	return all
}

// terminals waits for the request's terminal event and returns all there are.
func terminals(t *testing.T, js jetstream.JetStream, id string, limit time.Duration) []cloudEvent {
	t.Helper()
	var found []cloudEvent
	await(t, limit, "the terminal event of "+id, func() bool {
		found = nil
		for _, w := range emitted(t, js) {
			if events.Type(w.subject).Terminal() && w.field(t, "request_id") == id {
				found = append(found, w)
			}
		}
		return len(found) > 0
	})
	return found
}

// pushBase pushes an image of busybox with every applet linked, plus ballast bytes
// in many files.
func pushBase(t *testing.T, ref string, ballast int64) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/", "usr/", "usr/bin/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "ls", "mkdir", "dd", "rm", "head", "tr", "env", "id", "grep", "seq", "true", "false", "touch", "yes", "awk"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	// A pip that finds nothing.
	add(tar.Header{Name: "bin/python", Mode: 0o755}, []byte("#!/bin/sh\ncat /kiln/requirements.txt\necho 'ERROR: No matching distribution found' >&2\nexit 1\n"))
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	chunk := make([]byte, 20<<10)
	for i := int64(0); i*int64(len(chunk)) < ballast; i++ {
		if _, err := rand.Read(chunk); err != nil {
			t.Fatal(err)
		}
		add(tar.Header{Name: fmt.Sprintf("usr/share/%02d/%05d", i%50, i), Mode: 0o644}, chunk)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"PATH=/bin:/usr/bin"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
}

// function is the JSON of a function with the given base and commands.
func functionJSON(t *testing.T, fn, base string, commands ...string) []byte {
	t.Helper()
	raw, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": fn, "project": "e2e"},
		"spec": map[string]any{"build": map[string]any{"base_image": base, "commands": commands, "with_mlrun": false}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// leftovers lists what a finished build must not leave behind.
func (k *kiln) leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(mounts), "\n") {
		if strings.Contains(line, k.dir) {
			left = append(left, "mount "+line)
		}
	}
	builds, _ := filepath.Glob(filepath.Join(k.dir, "sandbox", "builds", "*"))
	left = append(left, builds...)
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		cmd, _ := os.ReadFile(p)
		// Another build on this machine is not meant: what a container has mounted is below
		// its engine's folder. Within another file system only the end of the path shows.
		mounted, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "mountinfo"))
		own := bytes.Contains(mounted, []byte(filepath.Join(filepath.Base(filepath.Dir(k.dir)), filepath.Base(k.dir))))
		if bytes.Contains(cmd, []byte("/kaniko/executor")) && own || bytes.Contains(cmd, []byte(k.dir+"/sandbox")) {
			left = append(left, p+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return left
}

func jetstreamID(id string) []jetstream.PublishOpt {
	return []jetstream.PublishOpt{jetstream.WithMsgID(id)}
}

// startWorker runs `kiln worker` beside k until the test ends; it returns its output.
func startWorker(t *testing.T, k *kiln) *lockedBuffer {
	t.Helper()
	out := &lockedBuffer{}
	cmd := exec.Command(k.bin, "worker", "--http-addr", "127.0.0.1:0")
	cmd.Env = append(slices.Clone(k.env), "KILN_NATS_URL="+k.NATSURL, "KILN_REGISTRY_URL="+k.Registry, "KILN_SANDBOX_STATE_DIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("kiln worker ended with %v\n%s", err, out)
		}
	})
	return out
}

// built is what `kiln build -o json` prints of a completed request.
type built struct {
	BuildID  string `json:"build_id"`
	Outcome  string `json:"outcome"`
	Digest   string `json:"digest"`
	Image    string `json:"image"`
	ImageRef string `json:"image_ref"`
	Engine   string `json:"engine"`
}
