package registry

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"

	"kiln/builder"
)

// Keys of a secret, as Kubernetes names those of its own secrets.
const (
	// keyDockerConfig is the key of a secret of type kubernetes.io/dockerconfigjson.
	keyDockerConfig = ".dockerconfigjson"
	// keyConfig is what the same file is called where Docker keeps it.
	keyConfig = "config.json"
	// keyAWS is a shared credentials file of AWS, which MLRun takes for ECR.
	keyAWS = "credentials"
)

// SecretStore knows registry credentials by name.
type SecretStore interface {
	// Secret returns what is in the named secret, in the form of a Kubernetes secret's
	// data: a docker config under ".dockerconfigjson" or "config.json", or a shared
	// credentials file of AWS under "credentials". It is asked at every use, so that
	// rotated values count. The error matches ErrNoSecret when there is none of that
	// name, and then says where it was looked for. Safe for concurrent use.
	Secret(ctx context.Context, name string) (map[string][]byte, error)
}

// ErrNoSecret is matched by the error of SecretStore.Secret when nobody knows the name.
var ErrNoSecret = errors.New("there is no such secret")

// Dir is a SecretStore that is a folder: "<name>/.dockerconfigjson" (a mounted secret of
// Kubernetes), "<name>/config.json", "<name>/credentials" (AWS) or "<name>.json".
// Nothing outside of the folder is read, not through links either.
type Dir string

// maxSecret bounds the size of a file of a secret, as Kubernetes does.
const maxSecret = 1 << 20

// secretName is what Kubernetes calls a secret, and a little more.
var secretName = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

// Secret implements SecretStore.
func (d Dir) Secret(_ context.Context, name string) (map[string][]byte, error) {
	if !secretName.MatchString(name) {
		return nil, fmt.Errorf("%w: %.80q is not a name: use letters, digits, dots and dashes", ErrNoSecret, name)
	}
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, fmt.Errorf("open folder of registry secrets: %w", err)
	}
	defer root.Close()
	data := map[string][]byte{}
	for file, key := range map[string]string{
		path.Join(name, keyDockerConfig): keyDockerConfig, path.Join(name, keyConfig): keyConfig,
		path.Join(name, keyAWS): keyAWS, name + ".json": keyConfig,
	} {
		raw, err := readSecret(root, file)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		case err != nil:
			return nil, fmt.Errorf("read registry secret: %w", err)
		case data[key] == nil || file != name+".json":
			data[key] = raw
		}
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: looked for %s/%s, %s/%s, %s/%s and %s.json in %s", ErrNoSecret,
			name, keyDockerConfig, name, keyConfig, name, keyAWS, name, string(d))
	}
	return data, nil
}

func readSecret(root *os.Root, name string) ([]byte, error) {
	// Opening what is no file, a pipe for example, could wait forever.
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(raw) > maxSecret {
		err = fmt.Errorf("%s is larger than %d MiB", name, maxSecret>>20)
	}
	return raw, err
}

// named reads the secret that this Registry is bound to; it is empty without a name.
func (r *Registry) named(ctx context.Context) (map[string][]byte, error) {
	if r.secret == "" {
		return nil, nil
	}
	op := fmt.Sprintf("reading registry secret %.80q", r.secret)
	if r.cfg.Secrets == nil {
		return nil, builder.Errorf(builder.KindInvalidRequest, op, "%w: this worker has no folder of registry secrets (registry.secrets_dir)", ErrNoSecret)
	}
	data, err := r.cfg.Secrets.Secret(ctx, r.secret)
	if errors.Is(err, ErrNoSecret) {
		return nil, &builder.Error{Kind: builder.KindInvalidRequest, Op: op, Err: err}
	}
	if err != nil {
		return nil, &builder.Error{Kind: builder.KindUnavailable, Op: op, Err: err}
	}
	return data, nil
}

// awsKeys reads the default profile of a shared credentials file. Only keys are taken:
// the file could also name programs to run.
func awsKeys(raw []byte) (id, key, token string) {
	profile := ""
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			profile = strings.TrimSpace(strings.Trim(line, "[]"))
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || profile != "default" {
			continue
		}
		switch value = strings.TrimSpace(value); strings.ToLower(strings.TrimSpace(name)) {
		case "aws_access_key_id":
			id = value
		case "aws_secret_access_key":
			key = value
		case "aws_session_token":
			token = value
		}
	}
	return id, key, token
}
