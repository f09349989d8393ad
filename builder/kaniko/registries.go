package kaniko

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder"
)

// keyFile is where the executor reads the key of a client certificate: its own
// environment, which commands cannot read, unlike any file.
const keyFile = "/proc/self/environ"

// keyEnv is the variable with the key.
const keyEnv = "KILN_CLIENT_KEY"

// Registries returns the hosts (host or host:port, as in references) that the plan
// pulls from, pushes to and caches in, in order of appearance.
func Registries(plan builder.Plan) []string {
	froms := stage.FindAllStringSubmatch(plan.Dockerfile, -1)
	refs, stages := append(make([]string, 0, 1+len(froms)), plan.Destination), append(make([]string, 0, 1+2*len(froms)), builder.Scratch)
	for i, m := range froms {
		refs, stages = append(refs, m[1]), append(stages, m[2], strconv.Itoa(i))
	}
	for _, m := range part.FindAllStringSubmatch(plan.Dockerfile, -1) {
		refs = append(refs, m[1])
	}
	for _, flag := range plan.Executor.Flags {
		if repository, ok := strings.CutPrefix(flag, "--cache-repo="); ok {
			refs = append(refs, repository)
		}
	}
	var hosts []string
	for _, ref := range refs {
		parsed, err := name.ParseReference(ref, name.WeakValidation)
		if err != nil || slices.ContainsFunc(stages, func(s string) bool { return strings.EqualFold(s, ref) }) {
			continue
		}
		if host := parsed.Context().RegistryStr(); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// Reach returns how the registries of the plan and their mirrors are reached, as access
// tells it for a host.
func Reach(plan builder.Plan, access func(host string) (builder.Access, error)) ([]builder.Access, error) {
	hosts := Registries(plan)
	origins := len(hosts)
	reached := make([]builder.Access, 0, origins)
	for i := 0; i < len(hosts); i++ {
		a, err := access(hosts[i])
		if err != nil {
			return nil, err
		}
		if i >= origins {
			a.Mirrors = nil
		}
		for _, mirror := range a.Mirrors {
			host, _, _ := strings.Cut(mirror, "/")
			if registry, err := name.NewRegistry(host); err == nil && !slices.Contains(hosts, registry.RegistryStr()) {
				hosts = append(hosts, registry.RegistryStr())
			}
		}
		reached = append(reached, a)
	}
	if host, other, ok := differentKeys(reached); ok {
		return nil, builder.Errorf(builder.KindInvalidRequest, "preparing certificates",
			"%s and %s want different client certificates, and a build can have one", host, other)
	}
	return reached, nil
}

func differentKeys(all []builder.Access) (host, other string, differ bool) {
	var first builder.Access
	for _, a := range all {
		switch {
		case len(a.ClientKey) == 0:
		case first.Host == "":
			first = a
		case string(a.ClientKey) != string(first.ClientKey):
			return first.Host, a.Host, true
		}
	}
	return "", "", false
}

// flags returns what the executor is told about registries.
func (o Options) flags(plan builder.Plan) []string {
	var insecure, others []string
	told := map[string]bool{}
	for i, a := range o.Registries {
		told[a.Host] = true
		if a.Insecure {
			insecure = append(insecure, "--insecure-registry="+a.Host)
		}
		if a.SkipTLSVerify {
			others = append(others, "--skip-tls-verify-registry="+a.Host)
		}
		if len(a.CA) > 0 {
			others = append(others, "--registry-certificate="+a.Host+"="+path.Join(o.Dir, caFile(i)))
		}
		if len(a.ClientCert) > 0 {
			others = append(others, "--registry-client-cert="+a.Host+"="+path.Join(o.Dir, certFile(i))+","+keyFile)
		}
		for _, mirror := range a.Mirrors {
			others = append(others, "--registry-map="+a.Host+"="+mirror)
		}
	}
	for _, host := range Registries(plan) {
		if !told[host] && loopback(host) {
			insecure = append(insecure, "--insecure-registry="+host)
		}
	}
	return append(insecure, others...)
}

func caFile(i int) string   { return fmt.Sprintf("registry-%d-ca.crt", i) }
func certFile(i int) string { return fmt.Sprintf("registry-%d-client.crt", i) }

// Files returns what the container has to find in Options.Dir, where no command may
// change it: certificates, and a docker config with the tokens that the executor takes
// from a file only. Names are relative, modes are those of files with and without
// credentials.
func (o Options) Files() ([]builder.File, error) {
	tokens := authFile{Auths: map[string]authEntry{}}
	var files []builder.File
	for i, a := range o.Registries {
		if len(a.CA) > 0 {
			files = append(files, builder.File{Name: caFile(i), Data: a.CA, Mode: 0o444})
		}
		if len(a.ClientCert) > 0 {
			files = append(files, builder.File{Name: certFile(i), Data: a.ClientCert, Mode: 0o444})
		}
		if l := a.Login; l.IdentityToken != "" || l.RegistryToken != "" {
			tokens.Auths[authKey(a.Host)] = authEntry{Auth: l.Basic(), IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
		}
	}
	raw, err := json.Marshal(tokens)
	if err != nil {
		return nil, fmt.Errorf("encode credentials: %w", err)
	}
	return append(files, builder.File{Name: "config.json", Data: raw, Mode: 0o400}), nil
}

// Env returns the environment that registries are reached by, as "NAME=value". It goes
// before every other variable: the executor takes the first key that it finds there.
func (o Options) Env() ([]string, error) {
	basic := authFile{Auths: map[string]authEntry{}}
	var env []string
	for _, a := range o.Registries {
		if len(a.ClientKey) > 0 && len(env) == 0 {
			env = append(env, keyEnv+"=\n"+strings.TrimSpace(string(a.ClientKey))+"\n")
		}
		if l := a.Login; l.IdentityToken == "" && l.RegistryToken == "" && l.Username != "" {
			basic.Auths[authKey(a.Host)] = authEntry{Auth: l.Basic()}
		}
	}
	env = append(env, "DOCKER_CONFIG="+o.Dir)
	if len(basic.Auths) == 0 {
		return env, nil
	}
	raw, err := json.Marshal(basic)
	if err != nil {
		return nil, fmt.Errorf("encode credentials: %w", err)
	}
	return append(env, "DOCKER_AUTH_CONFIG="+string(raw)), nil
}

// authFile is a docker config.
type authFile struct {
	Auths map[string]authEntry `json:"auths"`
}

type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// authKey is what a docker config calls a host.
func authKey(host string) string {
	if host == name.DefaultRegistry {
		return "https://" + name.DefaultRegistry + "/v1/"
	}
	return host
}

func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost"
}
