package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder"
)

// dockerLogins are the credentials of a docker config.json; an empty path: none. It is
// read anew for every build, so that rotated credentials are used, and its credential
// helpers run in this process.
type dockerLogins struct{ path string }

// DockerConfig implements kube.Credentials.
func (d dockerLogins) DockerConfig(_ context.Context, secret string, hosts []string) ([]byte, error) {
	const op = "reading registry credentials"
	if secret != "" {
		return nil, builder.Errorf(builder.KindInvalidRequest, op, "spec.build.secret %q: this worker knows no secrets by name", secret)
	}
	auths := map[string]types.AuthConfig{}
	if d.path != "" {
		f, err := os.Open(filepath.Clean(d.path))
		if err != nil {
			return nil, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
		}
		defer f.Close()
		file, err := config.LoadFromReader(f)
		if err != nil {
			return nil, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
		}
		for _, host := range hosts {
			if host == name.DefaultRegistry {
				host = authn.DefaultAuthKey
			}
			auth, err := file.GetAuthConfig(host)
			if err != nil {
				return nil, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: fmt.Errorf("credentials of %s: %w", host, err)}
			}
			// Docker fills in the address even when there are no credentials.
			if auth.ServerAddress = ""; auth != (types.AuthConfig{}) {
				auths[host] = entry(auth)
			}
		}
	}
	raw, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return nil, fmt.Errorf("encode registry credentials: %w", err)
	}
	return raw, nil
}

// entry is how a docker config.json holds credentials.
func entry(auth types.AuthConfig) types.AuthConfig {
	if auth.Auth == "" && auth.Username != "" {
		auth.Auth = base64.StdEncoding.EncodeToString([]byte(auth.Username + ":" + auth.Password))
	}
	auth.Username, auth.Password = "", ""
	return auth
}
