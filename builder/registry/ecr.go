package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/aws/aws-sdk-go-v2/service/ecrpublic"
	publictypes "github.com/aws/aws-sdk-go-v2/service/ecrpublic/types"
	"github.com/aws/smithy-go"

	"kiln/builder"
)

// ecrAccount is an identity at AWS: by default the one that this process has, by its
// environment, shared files, web identity or metadata service.
type ecrAccount struct {
	// options of every call's configuration.
	options []func(*config.LoadOptions) error
}

// withKeys returns an account of the same settings with fixed keys.
func (e *ecrAccount) withKeys(id, key, token string) *ecrAccount {
	provider := credentials.NewStaticCredentialsProvider(id, key, token)
	return &ecrAccount{options: append(slices.Clip(e.options), config.WithCredentialsProvider(provider))}
}

// ecrHost is a private registry: account, FIPS endpoint, region. The domains are those
// of AWS's partitions.
var ecrHost = regexp.MustCompile(`^([0-9]{12})\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.(?:com(?:\.cn)?|eu)` +
	`|on\.(?:aws|amazonwebservices\.com\.cn)|sc2s\.sgov\.gov|c2s\.ic\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)$`)

// publicECR is the one public registry; its API is in one region.
const (
	publicECR       = "public.ecr.aws"
	publicECRRegion = "us-east-1"
)

// serves implements cloud.
func (*ecrAccount) serves(host string) bool { return host == publicECR || ecrHost.MatchString(host) }

// configure returns the configuration for the API of a host's region.
func (e *ecrAccount) configure(ctx context.Context, host string) (cfg aws.Config, account string, err error) {
	region, options := publicECRRegion, slices.Clip(e.options)
	if m := ecrHost.FindStringSubmatch(host); m != nil {
		account, region = m[1], m[3]
		if m[2] != "" {
			options = append(options, config.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
		}
	}
	cfg, err = config.LoadDefaultConfig(ctx, append(options, config.WithRegion(region))...)
	if err != nil {
		err = fmt.Errorf("read AWS configuration: %w", err)
	}
	return cfg, account, err
}

// login implements cloud.
func (e *ecrAccount) login(ctx context.Context, host string, _ http.RoundTripper) (builder.Login, error) {
	cfg, _, err := e.configure(ctx, host)
	if err != nil {
		return builder.Login{}, err
	}
	var token *string
	if host == publicECR {
		var out *ecrpublic.GetAuthorizationTokenOutput
		if out, err = ecrpublic.NewFromConfig(cfg).GetAuthorizationToken(ctx, nil); err == nil && out.AuthorizationData != nil {
			token = out.AuthorizationData.AuthorizationToken
		}
	} else {
		var out *ecr.GetAuthorizationTokenOutput
		if out, err = ecr.NewFromConfig(cfg).GetAuthorizationToken(ctx, nil); err == nil && len(out.AuthorizationData) > 0 {
			token = out.AuthorizationData[0].AuthorizationToken
		}
	}
	if err != nil {
		return builder.Login{}, fmt.Errorf("get authorization token for %s: %w", host, awsError(err))
	}
	raw, err := base64.StdEncoding.DecodeString(aws.ToString(token))
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return builder.Login{}, fmt.Errorf("get authorization token for %s: the answer holds none", host)
	}
	return builder.Login{Username: user, Password: password}, nil
}

// create makes a repository that is not there; one that is there is left as it is. The
// error matches errDenied when the account may not do that.
func (e *ecrAccount) create(ctx context.Context, host, repository string) error {
	cfg, account, err := e.configure(ctx, host)
	if err != nil {
		return err
	}
	if host == publicECR {
		_, name, _ := strings.Cut(repository, "/") // the first part is the registry's alias
		_, err = ecrpublic.NewFromConfig(cfg).CreateRepository(ctx, &ecrpublic.CreateRepositoryInput{RepositoryName: &name})
		if _, exists := errors.AsType[*publictypes.RepositoryAlreadyExistsException](err); exists {
			return nil
		}
		return awsError(err)
	}
	_, err = ecr.NewFromConfig(cfg).CreateRepository(ctx, &ecr.CreateRepositoryInput{RegistryId: &account, RepositoryName: &repository})
	if _, exists := errors.AsType[*types.RepositoryAlreadyExistsException](err); exists {
		return nil
	}
	return awsError(err)
}

// awsError marks an error by which the API says that the caller may not do that.
func awsError(err error) error {
	answer, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		return err
	}
	switch answer.ErrorCode() {
	case "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "InvalidClientTokenId",
		"ExpiredTokenException", "ExpiredToken", "AccessDenied", "IncompleteSignatureException", "MissingAuthenticationTokenException":
		return fmt.Errorf("%w: %w", errDenied, err)
	}
	return err
}
