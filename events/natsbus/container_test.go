//go:build e2e

package natsbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"kiln/events"
	"kiln/events/natsbus"
)

// TestContainer runs against a real nats-server in a container and takes it away in
// mid-flight. The image is TEST_NATS_IMAGE, or one with nothing but the server of
// this module's dependency.
func TestContainer(t *testing.T) { //nolint:paralleltest // It sets environment variables.
	// No helper container is pulled, and no other host is guessed.
	for name, value := range map[string]string{"TESTCONTAINERS_RYUK_DISABLED": "true", "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1"} {
		if os.Getenv(name) == "" {
			t.Setenv(name, value)
		}
	}
	needDocker(t)
	ctr, url := startContainer(t)
	for _, tc := range []struct { //nolint:paralleltest // One container, taken away twice.
		name  string
		grace time.Duration
	}{{"stopped", 10 * time.Second}, {"killed", 0}} {
		t.Run(tc.name, func(t *testing.T) {
			survive(t, url, natsbus.Topology{Prefix: tc.name}, func() {
				if err := ctr.Stop(t.Context(), &tc.grace); err != nil {
					t.Fatal(err)
				}
			}, func() {
				if err := ctr.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func needDocker(t *testing.T) {
	t.Helper()
	if err := dockerHealth(t.Context()); err != nil {
		t.Skipf("SKIPPED, NOTHING WAS TESTED AGAINST A REAL SERVER: this needs a Docker engine: %v", err)
	}
}

func dockerHealth(ctx context.Context) (err error) {
	// The library panics where it finds no engine.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	provider, err := testcontainers.ProviderDefault.GetProvider()
	if err != nil {
		return err
	}
	defer provider.Close()
	return provider.Health(ctx)
}

// startContainer runs the server on a port of this machine that stays the same over
// restarts.
func startContainer(t *testing.T) (testcontainers.Container, string) {
	t.Helper()
	port := strconv.Itoa(freePort(t))
	inside := network.MustParsePort("4222/tcp")
	opts := []testcontainers.ContainerCustomizer{
		testcontainers.WithCmd("-js", "-sd", "/data"),
		testcontainers.WithExposedPorts(inside.String()),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			c.PortBindings = network.PortMap{inside: {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: port}}}
		}),
		testcontainers.WithWaitStrategy(wait.ForLog("Server is ready").WithStartupTimeout(time.Minute)),
	}
	image := os.Getenv("TEST_NATS_IMAGE")
	if image == "" {
		opts = append(opts, testcontainers.WithDockerfile(testcontainers.FromDockerfile{Context: buildContext(t)}))
	}
	ctr, err := testcontainers.Run(t.Context(), image, opts...)
	testcontainers.CleanupContainer(t, ctr)
	if err != nil {
		t.Fatal(err)
	}
	return ctr, "nats://127.0.0.1:" + port
}

// buildContext compiles the server and returns a folder with it and a Dockerfile.
func buildContext(t *testing.T) string {
	t.Helper()
	const module = "github.com/nats-io/nats-server/v2"
	dir := t.TempDir()
	run := func(env string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", env)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := run("", "build", "-trimpath", "-o", filepath.Join(dir, "nats-server"), module); err != nil {
		// The main package may need modules that this one's go.sum does not list.
		version, listErr := run("", "list", "-m", "-f", "{{.Version}}", module)
		if listErr != nil {
			t.Fatalf("build nats-server: %v\n%s", err, out)
		}
		if out, err := run("GOBIN="+dir, "install", module+"@"+version); err != nil {
			t.Fatalf("install nats-server: %v\n%s", err, out)
		}
	}
	dockerfile := "FROM scratch\nCOPY nats-server /nats-server\nENTRYPOINT [\"/nats-server\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// survive takes the server away while a message is in progress, a log and the events
// are followed, and something is published, and looks that nothing of it is lost.
func survive(t *testing.T, url string, topology natsbus.Topology, down, up func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	nc, err := natsbus.Connect(natsbus.Config{URL: url, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	bus, err := natsbus.New(nc, topology)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(ctx, bus.JetStream(), topology); err != nil {
		t.Fatal(err)
	}
	queue, err := bus.Queue(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("r%02d", i))
		publishRequest(t, bus, want[i])
	}
	inProgress := nextSoon(t, queue)
	logs := bus.Logs().Open("b1", 1)
	log, event := follow(ctx, bus)
	fmt.Fprintln(logs, "before")
	if line := <-log.lines; line != "before\n" {
		t.Errorf("followed %q", line)
	}

	down()
	fmt.Fprintln(logs, "meanwhile")
	published := make(chan error, 1)
	go func() { published <- bus.Publish(ctx, failed("published meanwhile")) }()
	absent, release := context.WithTimeout(ctx, 500*time.Millisecond)
	if err := inProgress.InProgress(absent); err == nil {
		t.Error("InProgress() succeeds without a server")
	}
	release()
	up()

	if err := natsbus.Ready(ctx, nc); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-published, inProgress.InProgress(ctx), inProgress.Ack(ctx)); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if id := <-event; id != "published meanwhile.build.failed" {
		t.Errorf("followed event %q", id)
	}
	fmt.Fprintln(logs, "after")
	if err := logs.Close(); err != nil {
		t.Error(err)
	}
	if err := <-log.done; err != nil || log.text.String() != "before\nmeanwhile\nafter\n" {
		t.Errorf("followed log = %q, %v", log.text.String(), err)
	}
	got := []string{string(inProgress.Event().Data)}
	for range len(want) - 1 {
		d := nextSoon(t, queue)
		if err := d.Ack(ctx); err != nil {
			t.Error(err)
		}
		got = append(got, string(d.Event().Data))
	}
	if diff := cmp.Diff(want, slices.Sorted(slices.Values(got))); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	report, err := natsbus.Provision(ctx, bus.JetStream(), topology)
	if err != nil || len(report.Unchanged) != 13 {
		t.Errorf("Provision() after the restart = %+v, %v", report, err)
	}
}

// followed is a log as its reader sees it; text may be read after done.
type followed struct {
	lines chan string
	done  chan error
	text  bytes.Buffer
}

// follow reads the log of b1 and the id of the first build.failed.
func follow(ctx context.Context, bus *natsbus.Bus) (log *followed, event <-chan string) {
	log = &followed{lines: make(chan string, 10), done: make(chan error, 1)}
	go func() {
		log.done <- bus.Logs().Read(ctx, "b1", 1, true, writerFunc(func(p []byte) (int, error) {
			log.lines <- string(p)
			return log.text.Write(p)
		}))
	}()
	id := make(chan string, 1)
	go func() {
		err := bus.Follow(ctx, []events.Type{events.TypeBuildFailed}, natsbus.Start{}, func(m events.Message) bool {
			id <- m.Header["Nats-Msg-Id"][0]
			return false
		})
		if err != nil {
			id <- err.Error()
		}
	}()
	return log, id
}
