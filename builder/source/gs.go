package source

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const (
	gsHint  = "credentials are taken from GCP_CREDENTIALS or GOOGLE_APPLICATION_CREDENTIALS, the JSON text of a service account's key"
	gsScope = "https://www.googleapis.com/auth/devstorage.read_only"
)

// openGS downloads an object by the JSON API,
// https://cloud.google.com/storage/docs/json_api/v1/objects/get with alt=media. The
// client library of Cloud Storage would do the same and make the program 20 MB larger.
func (s *Sources) openGS(ctx context.Context, l location, env map[string]string, tag string) (content, error) {
	u := &url.URL{Scheme: "https", Host: "storage.googleapis.com"}
	// Google's own variable for another server.
	if host := first(env, "STORAGE_EMULATOR_HOST"); host != "" {
		if !strings.Contains(host, "://") {
			host = "http://" + host
		}
		other, err := url.Parse(host)
		if err != nil || other.Host == "" || other.User != nil {
			return content{}, invalid("STORAGE_EMULATOR_HOST is not [http(s)://]host[:port]")
		}
		u.Scheme, u.Host = other.Scheme, other.Host
	}
	u.Path = "/storage/v1/b/" + l.bucket + "/o/" + l.key
	u.RawPath = "/storage/v1/b/" + url.PathEscape(l.bucket) + "/o/" + url.PathEscape(l.key)
	u.RawQuery = "alt=media"
	token, err := s.gsToken(ctx, env)
	if err != nil {
		return content{}, err
	}
	var authorize func(*http.Request)
	if token != nil {
		authorize = token.SetAuthHeader
	}
	return s.get(ctx, u, authorize, tag, gsHint)
}

// gsToken returns an access token, nil without credentials.
func (s *Sources) gsToken(ctx context.Context, env map[string]string) (*oauth2.Token, error) {
	text := first(env, "GCP_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS")
	if text == "" {
		return s.ambientGS(ctx)
	}
	var key struct {
		Type     google.CredentialsType `json:"type"`
		TokenURI string                 `json:"token_uri"`
	}
	if err := json.Unmarshal([]byte(text), &key); err != nil {
		return nil, invalid("GOOGLE_APPLICATION_CREDENTIALS is not JSON: a worker does not read files that a request names; give the text of the key")
	}
	// Other types make the library read files, run programs and ask metadata services.
	if key.Type != google.ServiceAccount && key.Type != google.AuthorizedUser {
		return nil, invalid("credentials for Google of the type %.40q are not accepted, only of a service_account or authorized_user", key.Type)
	}
	if key.TokenURI != "" {
		u, err := url.Parse(key.TokenURI)
		if err != nil {
			return nil, invalid("the token_uri of the credentials for Google is not a URL")
		}
		if err := s.network.check(u); err != nil {
			return nil, err
		}
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, s.network.client(&url.URL{}, nil))
	creds, err := google.CredentialsFromJSONWithType(ctx, []byte(text), key.Type, gsScope)
	if err != nil {
		return nil, invalid("the credentials for Google cannot be used: %w", err)
	}
	return tokenOf(creds.TokenSource)
}

func (s *Sources) ambientGS(ctx context.Context) (*oauth2.Token, error) {
	if !s.cfg.Ambient {
		return nil, nil
	}
	creds, err := google.FindDefaultCredentials(ctx, gsScope)
	if err != nil {
		return nil, nil //nolint:nilerr // a machine without credentials reads what is public
	}
	return tokenOf(creds.TokenSource)
}

func tokenOf(source oauth2.TokenSource) (*oauth2.Token, error) {
	token, err := source.Token()
	if err == nil {
		return token, nil
	}
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok && refused.Response != nil && refused.Response.StatusCode < http.StatusInternalServerError {
		return nil, answered(refused.Response.StatusCode, "Google gives no token: "+refused.ErrorCode+"; "+gsHint)
	}
	return nil, err
}
