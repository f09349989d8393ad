package registry

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// readDockerConfig reads a docker config file. Its errors do not repeat contents.
func readDockerConfig(path string) (*configfile.ConfigFile, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("read docker config: %w", err)
	}
	defer f.Close()
	file, err := config.LoadFromReader(f)
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
	var secrets []string
	for _, auth := range file.AuthConfigs {
		secrets = append(secrets, auth.Password, auth.IdentityToken, auth.RegistryToken)
		if auth.Password != "" {
			// What an "auth" entry and a basic authorization header hold.
			secrets = append(secrets, base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password)))
		}
	}
	return slices.DeleteFunc(secrets, func(s string) bool { return strings.TrimSpace(s) == "" })
}

// fileKeychain takes credentials from one docker config file. It reads the file
// anew each time, so that rotated credentials are used.
type fileKeychain struct{ path string }

// Resolve implements authn.Keychain.
func (k fileKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	file, err := readDockerConfig(k.path)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		auth, err := file.GetAuthConfig(key)
		if err != nil {
			return nil, fmt.Errorf("read credentials of %s: %w", key, err)
		}
		// Docker fills in the address even when there are no credentials.
		auth.ServerAddress = ""
		if auth != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
				IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}
