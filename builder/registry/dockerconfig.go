package registry

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder"
)

// readDockerConfig reads a docker config file. Its errors do not repeat contents.
func readDockerConfig(path string) (*configfile.ConfigFile, error) {
	raw, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read docker config: %w", err)
	}
	file, err := config.LoadFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("docker config %s is not valid: %w", path, err)
	}
	return file, nil
}

// defaultDockerConfig is where Docker keeps its configuration; "" if that is unknown.
func defaultDockerConfig() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	return filepath.Join(dir, config.ConfigFileName)
}

// secretsOf returns the values in a docker config that must not be shown.
func secretsOf(file *configfile.ConfigFile) []string {
	secrets := make([]string, 0, 2*len(file.AuthConfigs))
	for _, auth := range file.AuthConfigs {
		secrets = append(secrets, loginOf(auth).SecretValues()...)
	}
	return secrets
}

func loginOf(auth types.AuthConfig) builder.Login {
	return builder.Login{
		Username: auth.Username, Password: auth.Password,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	}
}

// keysOf returns the names that a host may have in a docker config. People write
// Docker Hub in many ways.
func keysOf(host string) []string {
	if host == hub {
		return []string{authn.DefaultAuthKey, hub, "docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

// lookUp returns the login of a host in a docker config, by the helpers that it names
// too.
func lookUp(file *configfile.ConfigFile, host string) (builder.Login, error) {
	return firstOf(host, file.GetAuthConfig)
}

// lookUpEntries returns the login of a host in the entries of a docker config: whoever
// wrote it has no say in what this process executes.
func lookUpEntries(file *configfile.ConfigFile, host string) (builder.Login, error) {
	return firstOf(host, credentials.NewFileStore(file).Get)
}

func firstOf(host string, get func(key string) (types.AuthConfig, error)) (builder.Login, error) {
	for _, key := range keysOf(host) {
		auth, err := get(key)
		if err != nil {
			return builder.Login{}, fmt.Errorf("read credentials of %s: %w", host, err)
		}
		if login := loginOf(auth); login != (builder.Login{}) {
			return login, nil
		}
	}
	return builder.Login{}, nil
}

// lookUpDefault returns the login of a host where Docker and Podman keep theirs.
func lookUpDefault(host string) (builder.Login, error) {
	registry, err := name.NewRegistry(host)
	if err != nil {
		return builder.Login{}, fmt.Errorf("read credentials of %s: %w", host, err)
	}
	auth, err := authn.DefaultKeychain.Resolve(registry)
	if err == nil {
		var found *authn.AuthConfig
		if found, err = auth.Authorization(); err == nil {
			return builder.Login{
				Username: found.Username, Password: found.Password,
				IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
			}, nil
		}
	}
	return builder.Login{}, fmt.Errorf("read credentials of %s: %w", host, err)
}
