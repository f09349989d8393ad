package source

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-git/v6/plumbing/transport/ssh/knownhosts"
	"golang.org/x/crypto/ssh"

	"kiln/builder"
)

// newKey returns a private key in PEM form.
func newKey(tb testing.TB) (string, ssh.Signer) {
	tb.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), signer
}

// sshServer gives the repositories below root to who has the key.
func sshServer(tb testing.TB, root string, host ssh.Signer, client ssh.PublicKey) net.Addr {
	tb.Helper()
	git := gitProgram(tb)
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if meta.User() != "git" || !bytes.Equal(key.Marshal(), client.Marshal()) {
				return nil, fmt.Errorf("unknown key of %s", meta.User())
			}
			return &ssh.Permissions{}, nil
		},
	}
	config.AddHostKey(host)
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serveSSH(tb.Context(), conn, config, git, root)
		}
	}()
	return listener.Addr()
}

func serveSSH(ctx context.Context, conn net.Conn, config *ssh.ServerConfig, git, root string) {
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		_ = conn.Close()
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go func() {
			defer channel.Close()
			env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}
			for r := range requests {
				switch r.Type {
				case "env":
					var variable struct{ Name, Value string }
					_ = ssh.Unmarshal(r.Payload, &variable)
					env = append(env, variable.Name+"="+variable.Value)
					_ = r.Reply(true, nil)
				case "exec":
					var run struct{ Command string }
					_ = ssh.Unmarshal(r.Payload, &run)
					_ = r.Reply(true, nil)
					path := strings.Trim(strings.TrimPrefix(run.Command, "git-upload-pack "), "'/")
					cmd := exec.CommandContext(ctx, git, "upload-pack", filepath.Join(root, path))
					cmd.Env, cmd.Stdout, cmd.Stderr = env, channel, channel.Stderr()
					in, err := cmd.StdinPipe()
					if err == nil {
						err = cmd.Start()
					}
					if err == nil {
						go func() {
							_, _ = io.Copy(in, channel)
							_ = in.Close()
						}()
						err = cmd.Wait()
					}
					status := make([]byte, 4)
					if err != nil {
						status[3] = 128
					}
					_, _ = channel.SendRequest("exit-status", false, status)
					return
				}
			}
		}()
	}
}

func TestSourcesByRealSSH(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r, commits := newRepository(t, root, "repo")
	hostText, host := newKey(t)
	clientText, client := newKey(t)
	addr := sshServer(t, root, host, client.PublicKey()).String()
	known := knownhosts.Line([]string{addr}, host.PublicKey())
	env := map[string]string{"GIT_SSH_KEY": strings.TrimSpace(clientText), "GIT_SSH_KNOWN_HOSTS": known}
	configured := filepath.Join(root, "known_hosts")
	if err := os.WriteFile(configured, []byte(known+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSources(t, nil)
	for url, want := range map[string]string{
		"ssh://git@" + addr + "/repo": commits["main"], "git+ssh://" + addr + "/repo#side": commits["side"],
		"ssh://git@" + addr + "/repo#" + commits["first"]: commits["first"],
	} {
		pinned, dir := fetched(t, s, url, env)
		if pinned != "git:"+want || len(dir.List(t)) != len(r.tree("")) {
			t.Errorf("%s is pinned to %s with %v", url, pinned, dir.List(t))
		}
	}
	byFile := newSources(t, func(c *Config) { c.KnownHosts = configured })
	if _, err := byFile.Pin(t.Context(), "ssh://git@"+addr+"/repo", map[string]string{"GIT_SSH_KEY": clientText}); err != nil {
		t.Errorf("with configured known hosts: %v", err)
	}

	otherKnown := knownhosts.Line([]string{addr}, client.PublicKey())
	for name, tc := range map[string]struct {
		url  string
		env  map[string]string
		kind builder.Kind
		says string
	}{
		"no key":           {"/repo", map[string]string{"GIT_SSH_KNOWN_HOSTS": known}, builder.KindSourceNotFound, "GIT_SSH_KEY"},
		"bad key":          {"/repo", map[string]string{"GIT_SSH_KEY": "hunter2", "GIT_SSH_KNOWN_HOSTS": known}, builder.KindInvalidRequest, "PEM"},
		"unknown key":      {"/repo", map[string]string{"GIT_SSH_KEY": hostText, "GIT_SSH_KNOWN_HOSTS": known}, builder.KindSourceNotFound, "denies access"},
		"no known hosts":   {"/repo", map[string]string{"GIT_SSH_KEY": clientText}, builder.KindSourceNotFound, "GIT_SSH_KNOWN_HOSTS"},
		"unknown host":     {"/repo", map[string]string{"GIT_SSH_KEY": clientText, "GIT_SSH_KNOWN_HOSTS": strings.Replace(known, "127.0.0.1", "10.1.2.3", 1)}, builder.KindSourceNotFound, "not known"},
		"another host key": {"/repo", map[string]string{"GIT_SSH_KEY": clientText, "GIT_SSH_KNOWN_HOSTS": otherKnown}, builder.KindSourceNotFound, "not the known one"},
		"bad known hosts":  {"/repo", map[string]string{"GIT_SSH_KEY": clientText, "GIT_SSH_KNOWN_HOSTS": "what?"}, builder.KindInvalidRequest, "known_hosts"},
		"no repository":    {"/gone", env, builder.KindSourceNotFound, "no such repository"},
	} {
		_, err := s.Pin(t.Context(), "ssh://git@"+addr+tc.url, tc.env)
		if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %s: %v, want %s with %q", name, builder.KindOf(err), err, tc.kind, tc.says)
		}
	}
	if left := cachedFiles(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
