package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	ggcr "github.com/google/go-containerregistry/pkg/v1/google"
	"golang.org/x/oauth2"

	"kiln/builder"
)

// google is the identity that this process has at Google: application default
// credentials, from a file or the metadata service. Its tokens live for an hour.
type google struct{}

// serves implements cloud.
func (google) serves(host string) bool { return host == "gcr.io" || under(host, "gcr.io", "pkg.dev") }

// login implements cloud.
func (google) login(ctx context.Context, host string, _ http.RoundTripper) (builder.Login, error) {
	auth, err := ggcr.NewEnvAuthenticator(ctx)
	if err == nil {
		found, autherr := auth.Authorization()
		if autherr == nil {
			return builder.Login{Username: found.Username, Password: found.Password}, nil
		}
		err = autherr
	}
	if answer, ok := errors.AsType[*oauth2.RetrieveError](err); ok && answer.Response != nil && answer.Response.StatusCode < http.StatusInternalServerError {
		// The answer's text may repeat what was sent.
		return builder.Login{}, fmt.Errorf("get access token for %s: %w: %s", host, errDenied, answer.ErrorCode)
	}
	return builder.Login{}, fmt.Errorf("get access token for %s: %w", host, err)
}
