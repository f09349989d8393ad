package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"kiln/builder/kube"
	"kiln/builder/source"
	"kiln/cmd/cli"
	"kiln/events/natsbus"
)

// podSources is what the init container of a build's Pod needs to fetch a source as the
// worker would. It travels in the build's Secret; files travel by content.
type podSources struct {
	Source     source.Config `json:"source"`
	KnownHosts string        `json:"known_hosts,omitempty"`
	// NATS is where uploaded sources are.
	NATS struct {
		URL         string `json:"url"`
		Prefix      string `json:"prefix,omitempty"`
		CA          string `json:"ca,omitempty"`
		Credentials string `json:"credentials,omitempty"`
		User        string `json:"user,omitempty"`
		Password    string `json:"password,omitempty"`
	} `json:"nats"`
}

// podSources returns the settings for the Pods of builds. The worker's own login at NATS
// is not among them: it may do more than read sources.
func (w *workerCmd) podSources() ([]byte, error) {
	var p podSources
	var err error
	if p.Source, err = w.Sources.config("", nil); err != nil {
		return nil, err
	}
	p.Source.KnownHosts = ""
	p.NATS.URL, p.NATS.Prefix = withoutUsers(w.NATS.Server()), w.NATS.Prefix
	p.NATS.User, p.NATS.Password = w.Kube.NATSUser, w.Kube.NATSPassword
	if w.Kube.NATSURL != "" {
		p.NATS.URL = w.Kube.NATSURL
	}
	for file, content := range map[string]*string{
		w.Sources.KnownHosts: &p.KnownHosts, w.NATS.CA: &p.NATS.CA, w.Kube.NATSCredentials: &p.NATS.Credentials,
	} {
		if file == "" {
			continue
		}
		raw, err := os.ReadFile(filepath.Clean(file))
		if err != nil {
			return nil, fmt.Errorf("read settings for Pods: %w", err)
		}
		*content = string(raw)
	}
	return json.Marshal(p)
}

// withoutUsers takes user names and passwords off the URLs of servers.
func withoutUsers(servers string) string {
	list := strings.Split(servers, ",")
	for i, server := range list {
		if u, err := url.Parse(strings.TrimSpace(server)); err == nil {
			u.User = nil
			list[i] = u.String()
		}
	}
	return strings.Join(list, ",")
}

// open returns the sources in a Pod, with their files below dir.
func (p podSources) open(dir string) (*source.Sources, error) {
	cfg := p.Source
	cfg.CacheDir, cfg.Contexts = filepath.Join(dir, "sources"), podContexts{p, dir}
	if p.KnownHosts != "" {
		cfg.KnownHosts = filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(cfg.KnownHosts, []byte(p.KnownHosts), 0o600); err != nil {
			return nil, fmt.Errorf("write SSH host keys: %w", err)
		}
	}
	return source.New(cfg)
}

// podContexts are the uploaded sources as a Pod sees them. It connects when one is
// opened: most builds need none.
type podContexts struct {
	settings podSources
	dir      string
}

// Open implements source.Contexts.
func (c podContexts) Open(ctx context.Context, digest string) (io.ReadCloser, error) {
	nc, err := c.connect()
	if err != nil {
		return nil, err
	}
	content, err := c.read(ctx, nc, digest)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return connectedReader{content, nc}, nil
}

func (c podContexts) connect() (*nats.Conn, error) {
	settings := c.settings.NATS
	cfg := natsbus.Config{URL: settings.URL, User: settings.User, Password: settings.Password, Name: "kiln-context", Timeout: 10 * time.Second}
	for name, file := range map[string]struct {
		content string
		path    *string
	}{"nats.creds": {settings.Credentials, &cfg.CredentialsFile}, "nats-ca.pem": {settings.CA, &cfg.CAFile}} {
		if file.content == "" {
			continue
		}
		*file.path = filepath.Join(c.dir, name)
		if err := os.WriteFile(*file.path, []byte(file.content), 0o600); err != nil {
			return nil, fmt.Errorf("write login for NATS: %w", err)
		}
	}
	return natsbus.Connect(cfg)
}

func (c podContexts) read(ctx context.Context, nc *nats.Conn, digest string) (io.ReadCloser, error) {
	bus, err := natsbus.New(nc, topologyFlags{}.topology(c.settings.NATS.Prefix))
	if err != nil {
		return nil, err
	}
	contexts, err := bus.Contexts(ctx)
	if err != nil {
		return nil, err
	}
	return contexts.Open(ctx, digest)
}

// connectedReader closes the connection that it reads from.
type connectedReader struct {
	io.ReadCloser
	nc *nats.Conn
}

// Close implements io.Closer.
func (r connectedReader) Close() error {
	defer r.nc.Close()
	return r.ReadCloser.Close()
}

// contextCmd is what the init container of a build's Pod runs.
type contextCmd struct {
	Plan           string `env:"-" default:"${plan_dir}" type:"existingdir" help:"Folder with the build's Secret."`
	Workspace      string `env:"-" default:"${workspace_dir}" type:"existingdir" help:"Folder to write Dockerfile, context and source to."`
	ForRun         bool   `name:"run" env:"-" help:"Prepare a run in place of a build."`
	TerminationLog string `env:"-" default:"${termination_log}" help:"File for the reason of a failure."`
}

// Help is shown below the flags.
func (contextCmd) Help() string {
	return `Prepares a build or a run inside its Pod. The engine kube runs it; there is no other use.

Examples:
  kiln context --plan /etc/kiln/plan --workspace /kaniko/build`
}

// Run fills the workspace.
func (c *contextCmd) Run(ctx context.Context, s cli.Streams) error {
	err := c.prepare(ctx, s)
	if err != nil {
		// The engine reads it from the status of the Pod.
		err = errors.Join(err, os.WriteFile(c.TerminationLog, kube.Failure(err), 0o600))
	}
	return err
}

func (c *contextCmd) prepare(ctx context.Context, s cli.Streams) error {
	plan, err := os.OpenRoot(c.Plan)
	if err != nil {
		return fmt.Errorf("open the plan: %w", err)
	}
	defer plan.Close()
	workspace, err := os.OpenRoot(c.Workspace)
	if err != nil {
		return fmt.Errorf("open the workspace: %w", err)
	}
	defer workspace.Close()
	dir, err := os.MkdirTemp("", "kiln-context-")
	if err != nil {
		return fmt.Errorf("make a folder for downloads: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	open := func(settings []byte) (kube.Sources, io.Closer, error) {
		var p podSources
		if err := json.Unmarshal(settings, &p); err != nil {
			return nil, nil, fmt.Errorf("read settings of sources: %w", err)
		}
		sources, err := p.open(dir)
		if err != nil {
			return nil, nil, err
		}
		return sources, sources, nil
	}
	if !c.ForRun {
		return kube.Prepare(ctx, plan, workspace, open, s.Out)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return kube.PrepareRun(ctx, plan, workspace, filepath.Join(filepath.Dir(self), "kiln-init"), open, s.Out)
}
