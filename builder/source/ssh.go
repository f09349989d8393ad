package source

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/go-git/go-git/v6/plumbing/protocol"
	"github.com/go-git/go-git/v6/plumbing/transport"
	gitssh "github.com/go-git/go-git/v6/plumbing/transport/ssh"
	"github.com/go-git/go-git/v6/plumbing/transport/ssh/knownhosts"
	"github.com/kevinburke/ssh_config"
	"golang.org/x/crypto/ssh"
)

const sshHint = "the private key is taken from GIT_SSH_KEY, the keys of hosts from GIT_SSH_KNOWN_HOSTS"

// connectSSH opens a session by SSH, with a key and known hosts of the request only.
func (s *Sources) connectSSH(ctx context.Context, l location, env map[string]string) (transport.Session, error) {
	login, err := s.sshLogin(l, env)
	if err != nil {
		return nil, err
	}
	client := gitssh.NewTransport(gitssh.Options{
		DialContext:  s.network.dial,
		ClientConfig: func(context.Context, *transport.Request) (*ssh.ClientConfig, error) { return login.config, nil },
		UserSettings: func(context.Context, *transport.Request) (*ssh_config.UserSettings, error) { return noSettings(), nil },
	})
	conn, err := client.Connect(ctx, &transport.Request{URL: &l.url, Command: transport.UploadPackService, Protocol: protocol.V2})
	_, network := errors.AsType[net.Error](err)
	if err != nil && login.hostChecked && !network && !isOurs(err) && !errors.Is(err, io.EOF) {
		return nil, denied(sshHint)
	}
	if err != nil {
		return nil, err
	}
	session, err := transport.NewStreamSession(conn, transport.UploadPackService)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, notFound("the server ended the session: it has no such repository, or does not show it to this key; %s", sshHint)
	}
	if err != nil {
		return nil, gitError(err, sshHint)
	}
	return session, nil
}

// sshLogin is how one connection is made.
type sshLogin struct {
	config *ssh.ClientConfig
	// hostChecked is set once the server has proved that it is the known one. What it
	// refuses then is the key.
	hostChecked bool
}

func (s *Sources) sshLogin(l location, env map[string]string) (*sshLogin, error) {
	signer, err := sshKey(env["GIT_SSH_KEY"])
	if err != nil {
		return nil, err
	}
	known, err := s.knownHosts(env)
	if err != nil {
		return nil, err
	}
	algorithms := known.HostKeyAlgorithms(net.JoinHostPort(l.url.Hostname(), cmp.Or(l.url.Port(), "22")))
	if len(algorithms) == 0 {
		return nil, notFound("the SSH key of %s is not known; add the line of `ssh-keyscan %s`, once you have checked it, to GIT_SSH_KNOWN_HOSTS", l.url.Host, l.url.Hostname())
	}
	login := &sshLogin{config: &ssh.ClientConfig{
		User: cmp.Or(l.user.Username(), "git"), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyAlgorithms: algorithms, Timeout: s.network.dialer.Timeout,
	}}
	login.config.HostKeyCallback = func(host string, remote net.Addr, key ssh.PublicKey) error {
		if err := known.HostKeyCallback()(host, remote, key); err != nil {
			return notFound("the SSH key of %s is not the known one: either it was changed, or somebody is in between; see GIT_SSH_KNOWN_HOSTS", host)
		}
		login.hostChecked = true
		return nil
	}
	return login, nil
}

func sshKey(text string) (ssh.Signer, error) {
	if text == "" {
		return nil, notFound("a source by SSH needs a private key; %s", sshHint)
	}
	// Variables lose their last line break easily, and keys cannot be read then.
	signer, err := ssh.ParsePrivateKey([]byte(text + "\n"))
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return nil, invalid("GIT_SSH_KEY is protected by a passphrase; give a key without one, a deploy key for example")
	}
	if err != nil {
		return nil, invalid("GIT_SSH_KEY is not a private key in PEM form")
	}
	return signer, nil
}

// noSettings keeps the files in ~/.ssh and /etc/ssh of this machine out.
func noSettings() *ssh_config.UserSettings {
	settings := &ssh_config.UserSettings{}
	settings.ConfigFinder(func() string { return os.DevNull })
	return settings
}

// knownHosts reads the keys of hosts: those of the request, else the configured ones.
func (s *Sources) knownHosts(env map[string]string) (*knownhosts.HostKeyDB, error) {
	text := env["GIT_SSH_KNOWN_HOSTS"]
	if text == "" {
		if s.cfg.KnownHosts == "" {
			return nil, notFound("no SSH keys of hosts are known; %s", sshHint)
		}
		known, err := knownhosts.NewDB(s.cfg.KnownHosts)
		if err != nil {
			return nil, unavailable("read the known SSH hosts of this worker", err)
		}
		return known, nil
	}
	// The library reads files only.
	dir, remove, err := s.cache.tempFolder()
	if err != nil {
		return nil, err
	}
	defer remove()
	if err := dir.WriteFile("known_hosts", []byte(text+"\n"), 0o600); err != nil {
		return nil, unavailable("write known SSH hosts", err)
	}
	known, err := knownhosts.NewDB(filepath.Join(dir.Name(), "known_hosts"))
	if err != nil {
		return nil, invalid("GIT_SSH_KNOWN_HOSTS is not in the form of a known_hosts file")
	}
	return known, nil
}
