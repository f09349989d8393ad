package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"kiln/builder"
)

// namedCredentials are what a named secret holds. The zero value is no secret.
type namedCredentials struct {
	docker *configfile.ConfigFile
	ecr    *ecrAccount
}

// credentials reads the secret that this Registry is bound to.
func (r *Registry) credentials(ctx context.Context) (namedCredentials, error) {
	var c namedCredentials
	data, err := r.named(ctx)
	if err != nil || r.secret == "" {
		return c, err
	}
	op := fmt.Sprintf("reading registry secret %.80q", r.secret)
	for _, key := range []string{keyDockerConfig, keyConfig} {
		raw, ok := data[key]
		if !ok {
			continue
		}
		// The library's errors could show a part of what it reads.
		if c.docker, err = config.LoadFromReader(bytes.NewReader(raw)); err != nil {
			return c, builder.Errorf(builder.KindUnavailable, op, "its %s is not a valid docker config", key)
		}
		r.redactor.Learn(secretsOf(c.docker)...)
		break
	}
	if raw, ok := data[keyAWS]; ok {
		id, key, token := awsKeys(raw)
		if id == "" || key == "" {
			return c, builder.Errorf(builder.KindUnavailable, op,
				"its %s has no aws_access_key_id and aws_secret_access_key in a profile [default]", keyAWS)
		}
		r.redactor.Learn(key, token)
		c.ecr = r.ecr.withKeys(id, key, token)
	}
	if c.docker == nil && c.ecr == nil {
		return c, builder.Errorf(builder.KindInvalidRequest, op, "it has none of %s, %s and %s", keyDockerConfig, keyConfig, keyAWS)
	}
	return c, nil
}

// login returns the credentials for a host: those of the named secret, else those of
// the docker config, else those that the host's cloud gives to this process, else none.
func (r *Registry) login(ctx context.Context, host string) (builder.Login, error) {
	for _, source := range []func(context.Context, string) (builder.Login, error){r.secretLogin, r.configLogin, r.cloudLogin} {
		login, err := source(ctx, host)
		r.redactor.Learn(login.SecretValues()...)
		if err != nil || login != (builder.Login{}) {
			return login, err
		}
	}
	return builder.Login{}, nil
}

func (r *Registry) secretLogin(ctx context.Context, host string) (builder.Login, error) {
	c, err := r.credentials(ctx)
	if err != nil {
		return builder.Login{}, err
	}
	if c.docker != nil {
		if login, err := lookUpEntries(c.docker, host); err != nil || login != (builder.Login{}) {
			return login, err
		}
	}
	if c.ecr != nil && c.ecr.serves(host) {
		return c.ecr.login(ctx, host, nil)
	}
	return builder.Login{}, nil
}

func (r *Registry) configLogin(_ context.Context, host string) (builder.Login, error) {
	if r.cfg.DockerConfig == "" {
		return lookUpDefault(host)
	}
	file, err := readDockerConfig(r.cfg.DockerConfig)
	if err != nil {
		return builder.Login{}, err
	}
	return lookUp(file, host)
}

func (r *Registry) cloudLogin(ctx context.Context, host string) (builder.Login, error) {
	for _, c := range r.clouds {
		if !c.serves(host) {
			continue
		}
		t, err := r.newTransport(host)
		if err != nil {
			return builder.Login{}, err
		}
		defer t.close()
		return c.login(ctx, host, t)
	}
	return builder.Login{}, nil
}

// Access returns what it takes to use the registry at host (as in references), with
// the named credentials first. Files and secrets are read anew at every call. Errors
// are of kind invalid_request, pull_denied and unavailable.
func (r *Registry) Access(ctx context.Context, host, secret string) (builder.Access, error) {
	bound := &Registry{shared: r.shared, secret: secret}
	op := "reading credentials of " + host
	access, err := r.reach(host)
	if err != nil {
		return builder.Access{}, r.fail(builder.KindUnavailable, op, err)
	}
	if access.Login, err = bound.login(ctx, host); err != nil {
		return builder.Access{}, r.pullError(op, err)
	}
	r.redactor.Learn(string(access.ClientKey))
	return access, nil
}

// errDenied is matched by the error of a cloud that knows this process and gives it
// nothing.
var errDenied = errors.New("access is denied")

// creator returns the AWS account that may make repositories at host: the same that
// pushes. It is nil for other hosts, and where what pushes cannot.
func (r *Registry) creator(ctx context.Context, host string) (*ecrAccount, error) {
	if !r.ecr.serves(host) {
		return nil, nil
	}
	c, err := r.credentials(ctx)
	if err != nil {
		return nil, err
	}
	if c.docker != nil {
		if login, err := lookUpEntries(c.docker, host); err != nil || login != (builder.Login{}) {
			return nil, err
		}
	}
	if c.ecr != nil {
		return c.ecr, nil
	}
	if slices.Contains(r.cfg.Clouds, cloudECR) {
		return r.ecr, nil
	}
	return nil, nil
}
