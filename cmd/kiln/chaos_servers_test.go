//go:build chaos || load

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/events/natsbus"
)

// compiled returns a program that is built once from a package, with tags.
func compiled(t *testing.T, name, pkg, tags string) string {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("../../bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-tags", tags, "-o", bin, pkg).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// process is a program that a test runs, kills and starts again.
type process struct {
	name string
	bin  string
	args []string
	env  []string
	// logs is the folder that its output goes to, one file for all its lives.
	logs string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	out, err := os.OpenFile(filepath.Join(p.logs, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(p.bin, p.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), p.env...), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(exited)
	}()
}

func (p *process) signal(s os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.cmd.Process.Signal(s)
}

// life is closed when the process that runs now has ended.
func (p *process) life() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exited
}

// kill ends the process as a power cut would, and returns when it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// stop asks the process to end and returns how it did; a nil error is exit code 0.
func (p *process) stop(patience time.Duration) error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("%s did not end within %s", p.name, patience)
	}
}

// cluster is some real NATS servers.
type cluster struct {
	nodes []*process
	urls  []string
}

// startServers starts n servers with file storage: one alone, or a cluster.
func startServers(t *testing.T, n int, logs string) *cluster {
	t.Helper()
	bin := compiled(t, "nats-server", "github.com/nats-io/nats-server/v2", "")
	ports := freePorts(t, 2*n)
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("nats-route://127.0.0.1:%d", ports[n+i]))
	}
	c := &cluster{}
	for i := range n {
		name := fmt.Sprintf("nats-%d", i+1)
		var text bytes.Buffer
		fmt.Fprintf(&text, "server_name: %s\nlisten: 127.0.0.1:%d\njetstream { store_dir: %q, max_file: 20G }\n", name, ports[i], filepath.Join(t.TempDir(), name))
		if n > 1 {
			fmt.Fprintf(&text, "cluster { name: kiln, listen: 127.0.0.1:%d, routes: [%s] }\n", ports[n+i], strings.Join(routes, ", "))
		}
		config := filepath.Join(t.TempDir(), name+".conf")
		if err := os.WriteFile(config, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		node := &process{name: name, bin: bin, args: []string{"-c", config}, logs: logs}
		node.start(t)
		t.Cleanup(node.kill)
		c.nodes = append(c.nodes, node)
		c.urls = append(c.urls, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	return c
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (c *cluster) url() string { return strings.Join(c.urls, ",") }

// connect connects to any node, for as long as the test takes.
func (c *cluster) connect(t *testing.T) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	within(t, time.Minute, "a connection to NATS", func() (err error) {
		nc, err = nats.Connect(c.url(), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
		return err
	})
	t.Cleanup(nc.Close)
	return nc
}

// provision makes the topology once the cluster can.
func (c *cluster) provision(t *testing.T, nc *nats.Conn, topology natsbus.Topology) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	within(t, time.Minute, "streams and buckets", func() error {
		_, err := natsbus.Provision(t.Context(), js, topology)
		return err
	})
	return js
}

// leader is the node that leads a stream; nil when there is none for the moment.
func (c *cluster) leader(ctx context.Context, js jetstream.JetStream, stream string) *process {
	s, err := js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().Cluster == nil {
		return nil
	}
	for _, node := range c.nodes {
		if node.name == s.CachedInfo().Cluster.Leader {
			return node
		}
	}
	return nil
}

// within repeats try until it succeeds.
func within(t *testing.T, patience time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %s: %v", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
