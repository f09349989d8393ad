package registry

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"kiln/builder"
	"kiln/builder/enginetest"
)

func TestCloudsServeTheirOwnHostsOnly(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"gcr.io": cloudGAR, "eu.gcr.io": cloudGAR, "europe-docker.pkg.dev": cloudGAR, "EUROPE-docker.pkg.DEV": cloudGAR,
		"team.azurecr.io": cloudACR, "team.azurecr.cn": cloudACR, "team.azurecr.us": cloudACR,
		ecrTestHost: cloudECR, publicECR: cloudECR,
		"evilgcr.io": "", "gcr.io.evil.example": "", "pkg.dev": "", "evilpkg.dev": "", "azurecr.io": "", "azurecr.io.evil.example": "",
		"team.azurecr.io:8443": "", "mcr.microsoft.com": "", "index.docker.io": "", "localhost:5000": "",
	} {
		for name, c := range map[string]cloud{cloudECR: &ecrAccount{}, cloudGAR: google{}, cloudACR: azure{}} {
			if got := c.serves(host); got != (name == want) {
				t.Errorf("%s serves %s: %t", name, host, got)
			}
		}
	}
}

func TestCloudsAreOffUnlessTheyAreNamed(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	for _, host := range []string{ecrTestHost, publicECR, "gcr.io", "team.azurecr.io"} {
		if access, err := r.Access(t.Context(), host, ""); err != nil || access.Login != (builder.Login{}) {
			t.Errorf("%s: %+v, %v", host, access, err)
		}
	}
}

// serviceAccount is a key file of Google whose tokens come from a server.
func serviceAccount(t *testing.T, tokenURL string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "kiln@example.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": tokenURL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return configFile(t, string(raw))
}

func TestGoogleIdentityOfThisProcess(t *testing.T) {
	var answer atomic.Int32
	answer.Store(http.StatusOK)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(answer.Load()))
		_, _ = fmt.Fprint(w, `{"access_token":"google-token-of-an-hour","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(tokens.Close)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t, tokens.URL))
	r := newRegistry(t, Config{Clouds: []string{cloudGAR}})
	access, err := r.Access(t.Context(), "europe-docker.pkg.dev", "")
	if want := (builder.Login{Username: "_token", Password: "google-token-of-an-hour"}); err != nil || access.Login != want {
		t.Errorf("Access = %+v, %v", access.Login, err)
	}
	if got := r.Redactor().Text("google-token-of-an-hour"); got != "***" {
		t.Errorf("the token is shown: %s", got)
	}
	if access, err := r.Access(t.Context(), "team.azurecr.io", ""); err != nil || access.Login != (builder.Login{}) {
		t.Errorf("another cloud's registry: %+v, %v", access.Login, err)
	}
	answer.Store(http.StatusForbidden)
	_, err = r.Access(t.Context(), "gcr.io", "")
	wantKind(t, err, builder.KindPullDenied)
	if err != nil && strings.Contains(err.Error(), "google-token") {
		t.Errorf("the error repeats the answer: %v", err)
	}
	wantKind(t, r.Prepare(t.Context(), "gcr.io/team/x:1"), builder.KindPushDenied)
	answer.Store(http.StatusServiceUnavailable)
	_, err = r.Access(t.Context(), "gcr.io", "")
	wantKind(t, err, builder.KindUnavailable)
}

// azureIdentity is a credential that notes what it is asked for.
type azureIdentity struct {
	scopes []string
	err    error
}

func (a *azureIdentity) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	a.scopes = o.Scopes
	return azcore.AccessToken{Token: "azure-identity-token"}, a.err
}

func TestAzureIdentityOfThisProcess(t *testing.T) {
	t.Parallel()
	const host = "team.azurecr.io"
	var answer atomic.Int32
	answer.Store(http.StatusOK)
	ca := enginetest.NewAuthority(t)
	s := enginetest.NewTLSServer(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/oauth2/exchange" || r.FormValue("grant_type") != "access_token" || r.FormValue("service") != host || r.FormValue("access_token") != "azure-identity-token" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(answer.Load()))
		_, _ = fmt.Fprintf(w, `{"refresh_token":"azure-token-of-three-hours","echo":%q}`, r.FormValue("access_token"))
	}), host)
	r := newRegistry(t, Config{Clouds: []string{cloudACR}, CA: ca.File})
	dialTo(r, map[string]*httptest.Server{host: s})
	identity := &azureIdentity{}
	r.clouds = []cloud{azure{credential: identity}}
	access, err := r.Access(t.Context(), host, "")
	if want := (builder.Login{Username: acrUser, Password: "azure-token-of-three-hours"}); err != nil || access.Login != want {
		t.Errorf("Access = %+v, %v", access.Login, err)
	}
	if len(identity.scopes) != 1 || identity.scopes[0] != "https://containerregistry.azure.net/.default" {
		t.Errorf("asked for %q", identity.scopes)
	}
	if got := r.Redactor().Text("azure-token-of-three-hours"); got != "***" {
		t.Errorf("the token is shown: %s", got)
	}
	answer.Store(http.StatusUnauthorized)
	_, err = r.Access(t.Context(), host, "")
	wantKind(t, err, builder.KindPullDenied)
	if err != nil && strings.Contains(err.Error(), "azure-identity-token") {
		t.Errorf("the error repeats the answer: %v", err)
	}
	answer.Store(http.StatusBadGateway)
	_, err = r.Access(t.Context(), host, "")
	wantKind(t, err, builder.KindUnavailable)
	identity.err = errors.New("no identity here")
	_, err = r.Access(t.Context(), host, "")
	wantKind(t, err, builder.KindUnavailable)
}
