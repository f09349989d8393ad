package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	cloudconfig "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/containers/azcontainerregistry"

	"kiln/builder"
)

// azure is the identity that this process has at Azure: environment, workload
// identity or managed identity.
type azure struct {
	// credential replaces the default one.
	credential azcore.TokenCredential
}

// acrUser stands for a user whose password is a refresh token.
const acrUser = "00000000-0000-0000-0000-000000000000"

// serves implements cloud.
func (azure) serves(host string) bool { return under(host, "azurecr.io", "azurecr.cn", "azurecr.us") }

// login implements cloud: the identity's token is exchanged for one of the registry,
// which lives for three hours.
func (a azure) login(ctx context.Context, host string, registry http.RoundTripper) (builder.Login, error) {
	token, err := a.token(ctx, host)
	if err != nil {
		return builder.Login{}, fmt.Errorf("get access token for %s: %w", host, azureError(err))
	}
	client, err := azcontainerregistry.NewAuthenticationClient("https://"+host, &azcontainerregistry.AuthenticationClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: &http.Client{Transport: registry}, Retry: azureRetry()},
	})
	if err != nil {
		return builder.Login{}, fmt.Errorf("exchange access token for %s: %w", host, err)
	}
	answer, err := client.ExchangeAADAccessTokenForACRRefreshToken(ctx, azcontainerregistry.PostContentSchemaGrantTypeAccessToken, host,
		&azcontainerregistry.AuthenticationClientExchangeAADAccessTokenForACRRefreshTokenOptions{AccessToken: &token})
	if err != nil {
		return builder.Login{}, fmt.Errorf("exchange access token for %s: %w", host, azureError(err))
	}
	if answer.RefreshToken == nil || *answer.RefreshToken == "" {
		return builder.Login{}, fmt.Errorf("exchange access token for %s: the answer holds none", host)
	}
	return builder.Login{Username: acrUser, Password: *answer.RefreshToken}, nil
}

// token returns the identity's token for registries of the host's cloud.
func (a azure) token(ctx context.Context, host string) (string, error) {
	where := cloudconfig.AzurePublic
	switch {
	case strings.HasSuffix(host, ".cn"):
		where = cloudconfig.AzureChina
	case strings.HasSuffix(host, ".us"):
		where = cloudconfig.AzureGovernment
	}
	credential := a.credential
	if credential == nil {
		var err error
		if credential, err = azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
			ClientOptions: azcore.ClientOptions{Cloud: where, Retry: azureRetry()},
		}); err != nil {
			return "", err
		}
	}
	audience := where.Services[azcontainerregistry.ServiceName].Audience
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{audience + "/.default"}})
	return token.Token, err
}

func azureRetry() policy.RetryOptions {
	return policy.RetryOptions{MaxRetries: 2, RetryDelay: 200 * time.Millisecond}
}

// azureError marks an error by which Azure says no, and leaves out answers, which
// may repeat what was sent.
func azureError(err error) error {
	if answer, ok := errors.AsType[*azcore.ResponseError](err); ok {
		if answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden {
			return fmt.Errorf("%w: %s", errDenied, answer.ErrorCode)
		}
		return fmt.Errorf("status %d, %s", answer.StatusCode, answer.ErrorCode)
	}
	if _, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		return fmt.Errorf("%w: the identity could not be authenticated", errDenied)
	}
	return err
}
