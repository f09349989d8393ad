package source

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

const azureHint = "credentials are taken from AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, " +
	"AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_TENANT_ID, AZURE_STORAGE_CLIENT_ID and AZURE_STORAGE_CLIENT_SECRET"

var accountPattern = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

func (s *Sources) openAzure(ctx context.Context, l location, env map[string]string, tag string) (content, error) {
	client, err := s.azureClient(l, env)
	if err != nil {
		return content{}, err
	}
	endpoint, err := url.Parse(client.URL())
	if err != nil {
		return content{}, invalid("the source's account cannot be used")
	}
	if err := s.network.check(endpoint); err != nil {
		return content{}, err
	}
	var options blob.DownloadStreamOptions
	if tag != "" {
		options.AccessConditions = &blob.AccessConditions{
			ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: new(azcore.ETag(tag))},
		}
	}
	answer, err := client.DownloadStream(ctx, &options)
	if refused, ok := errors.AsType[*azcore.ResponseError](err); ok {
		if refused.StatusCode == http.StatusNotModified && tag != "" {
			return content{}, nil
		}
		return content{}, answered(refused.StatusCode, refused.ErrorCode+"; "+azureHint)
	}
	if _, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		return content{}, denied(azureHint)
	}
	if err != nil {
		return content{}, err
	}
	o := content{body: answer.Body, size: -1}
	if answer.ContentLength != nil {
		o.size = *answer.ContentLength
	}
	if answer.ETag != nil {
		o.tag = string(*answer.ETag)
	}
	return o, nil
}

// azureClient chooses the credentials in the order of MLRun.
func (s *Sources) azureClient(l location, env map[string]string) (*blob.Client, error) {
	transport := &http.Client{
		Transport:     s.network,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	options := &blob.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: transport, Retry: policy.RetryOptions{MaxRetries: -1}, Telemetry: policy.TelemetryOptions{Disabled: true},
	}}
	if text := first(env, "AZURE_STORAGE_CONNECTION_STRING"); text != "" && l.url.Host == "" {
		client, err := blob.NewClientFromConnectionString(text, l.bucket, l.key, options)
		if err != nil {
			return nil, invalid("AZURE_STORAGE_CONNECTION_STRING cannot be used: %w", err)
		}
		return client, nil
	}
	account := first(env, "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
	host := l.url.Host
	if host == "" {
		if !accountPattern.MatchString(account) {
			return nil, invalid("az:// needs the name of an account; %s", azureHint)
		}
		host = account + ".blob.core.windows.net"
	}
	u := url.URL{Scheme: "https", Host: host, Path: "/" + l.bucket + "/" + l.key}
	hostAccount, _, _ := strings.Cut(host, ".")
	return s.azureClientAt(u, cmp.Or(account, hostAccount), env, options)
}

func (s *Sources) azureClientAt(u url.URL, account string, env map[string]string, options *blob.ClientOptions) (client *blob.Client, err error) {
	key := first(env, "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
	sas := strings.TrimPrefix(first(env, "AZURE_STORAGE_SAS_TOKEN"), "?")
	tenant, id := first(env, "AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID"), first(env, "AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID")
	secret := first(env, "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET")
	var token azcore.TokenCredential
	switch {
	case key != "":
		var shared *blob.SharedKeyCredential
		if shared, err = blob.NewSharedKeyCredential(account, key); err == nil {
			client, err = blob.NewClientWithSharedKeyCredential(u.String(), shared, options)
		}
	case sas != "":
		u.RawQuery = sas
		client, err = blob.NewClientWithNoCredential(u.String(), options)
	case tenant != "" && id != "" && secret != "":
		token, err = azidentity.NewClientSecretCredential(tenant, id, secret, &azidentity.ClientSecretCredentialOptions{ClientOptions: options.ClientOptions})
	case s.cfg.Ambient:
		token, err = azidentity.NewDefaultAzureCredential(nil)
	default:
		client, err = blob.NewClientWithNoCredential(u.String(), options)
	}
	if token != nil && err == nil {
		client, err = blob.NewClient(u.String(), token, options)
	}
	if err != nil {
		return nil, invalid("the credentials for Azure cannot be used: %w", err)
	}
	return client, nil
}
