package sandbox

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

type authFile struct {
	Auths map[string]authEntry `json:"auths"`
}

// credentials returns what the executor authenticates with at the hosts: env is the
// value of DOCKER_AUTH_CONFIG, which no command can read; file is a config.json with
// the tokens that the executor accepts from a file only. Credential helpers run
// here, never in the container.
func credentials(dockerConfig string, hosts []string) (env string, file []byte, err error) {
	inEnv, inFile := authFile{Auths: map[string]authEntry{}}, authFile{Auths: map[string]authEntry{}}
	for _, host := range hosts {
		auth, err := lookUp(dockerConfig, host)
		if err != nil {
			return "", nil, err
		}
		key := host
		if host == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		switch {
		case auth.IdentityToken != "" || auth.RegistryToken != "":
			inFile.Auths[key] = authEntry{Auth: basic(auth), IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}
		case basic(auth) != "":
			inEnv.Auths[key] = authEntry{Auth: basic(auth)}
		}
	}
	if len(inEnv.Auths) > 0 {
		raw, err := json.Marshal(inEnv)
		if err != nil {
			return "", nil, fmt.Errorf("encode credentials: %w", err)
		}
		env = string(raw)
	}
	if file, err = json.Marshal(inFile); err != nil {
		return "", nil, fmt.Errorf("encode credentials: %w", err)
	}
	return env, file, nil
}

func basic(auth authn.AuthConfig) string {
	switch {
	case auth.Auth != "":
		return auth.Auth
	case auth.Username != "":
		return base64.StdEncoding.EncodeToString([]byte(auth.Username + ":" + auth.Password))
	}
	return ""
}

func lookUp(dockerConfig, host string) (authn.AuthConfig, error) {
	if dockerConfig == "" {
		registry, err := name.NewRegistry(host, name.WeakValidation)
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("read credentials of %s: %w", host, err)
		}
		auth, err := authn.DefaultKeychain.Resolve(registry)
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("read credentials of %s: %w", host, err)
		}
		cfg, err := auth.Authorization()
		if err != nil {
			return authn.AuthConfig{}, fmt.Errorf("read credentials of %s: %w", host, err)
		}
		return *cfg, nil
	}
	f, err := os.Open(filepath.Clean(dockerConfig))
	if err != nil {
		return authn.AuthConfig{}, fmt.Errorf("read docker config: %w", err)
	}
	defer f.Close()
	file, err := config.LoadFromReader(f)
	if err != nil {
		return authn.AuthConfig{}, fmt.Errorf("read docker config %s: %w", dockerConfig, err)
	}
	key := host
	if host == name.DefaultRegistry {
		key = authn.DefaultAuthKey
	}
	auth, err := file.GetAuthConfig(key)
	if err != nil {
		return authn.AuthConfig{}, fmt.Errorf("read credentials of %s: %w", host, err)
	}
	auth.ServerAddress = ""
	if auth == (types.AuthConfig{}) {
		return authn.AuthConfig{}, nil
	}
	return authn.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	}, nil
}
