package registry

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"kiln/builder"
	"kiln/builder/enginetest"
)

const (
	ecrTestHost  = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
	ecrTestToken = "ecr-token-of-twelve-hours"
)

// fakeECR is an account at ECR: the JSON API of private and public registries, and the
// registry with what was made by it. Names of keys say who may what.
type fakeECR struct {
	api   *httptest.Server
	front http.Handler

	mu           sync.Mutex
	repositories map[string]bool
	calls        []string
	broken       bool
}

var signed = regexp.MustCompile(`Credential=([A-Z0-9]+)/`)

func newECR(t *testing.T) *fakeECR {
	t.Helper()
	e := &fakeECR{repositories: map[string]bool{}}
	e.api = httptest.NewTLSServer(http.HandlerFunc(e.serveAPI))
	t.Cleanup(e.api.Close)
	images := newHandler()
	e.front = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "AWS" || password != ecrTestToken {
			w.Header().Set("WWW-Authenticate", `Basic realm="ecr"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		repository, _, found := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
		e.mu.Lock()
		known := e.repositories[repository]
		e.mu.Unlock()
		if found && r.Method == http.MethodPost && !known {
			answer(http.StatusNotFound, "NAME_UNKNOWN")(w, r)
			return
		}
		images.ServeHTTP(w, r)
	})
	return e
}

func (e *fakeECR) serveAPI(w http.ResponseWriter, r *http.Request) {
	who := signed.FindStringSubmatch(r.Header.Get("Authorization"))
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	var in struct{ RegistryID, RepositoryName string }
	raw, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(raw, &in)
	e.mu.Lock()
	defer e.mu.Unlock()
	refuse := func(status int, code string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("X-Amzn-Errortype", code)
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"__type":%q,"message":"says the test"}`, code)
	}
	if who == nil || operation == "" {
		refuse(http.StatusBadRequest, "MissingAuthenticationTokenException")
		return
	}
	api, _, _ := strings.Cut(strings.TrimPrefix(r.Host, "api."), ".amazonaws.com")
	e.calls = append(e.calls, strings.Join(strings.Fields(who[1]+" "+api+" "+operation+" "+in.RegistryID+" "+in.RepositoryName), " "))
	token := base64.StdEncoding.EncodeToString([]byte("AWS:" + ecrTestToken))
	public := strings.HasPrefix(api, "ecr-public.")
	switch {
	case e.broken:
		refuse(http.StatusInternalServerError, "ServerException")
	case who[1] == "NOBODY":
		refuse(http.StatusBadRequest, "UnrecognizedClientException")
	case operation == "GetAuthorizationToken" && public:
		_, _ = fmt.Fprintf(w, `{"authorizationData":{"authorizationToken":%q}}`, token)
	case operation == "GetAuthorizationToken":
		_, _ = fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":%q,"proxyEndpoint":"https://x"}]}`, token)
	case who[1] == "PUSHER":
		refuse(http.StatusBadRequest, "AccessDeniedException")
	case operation == "CreateRepository" && e.repositories[in.RepositoryName]:
		refuse(http.StatusBadRequest, "RepositoryAlreadyExistsException")
	case operation == "CreateRepository":
		e.repositories[in.RepositoryName] = true
		_, _ = fmt.Fprintf(w, `{"repository":{"repositoryName":%q}}`, in.RepositoryName)
	default:
		refuse(http.StatusBadRequest, "InvalidAction")
	}
}

// set changes the account while it answers: giving up an upload outlasts Prepare.
func (e *fakeECR) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// take returns the calls since the last take.
func (e *fakeECR) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	calls := e.calls
	e.calls = nil
	return calls
}

// registry returns a Registry for which the account is AWS, and who is its own key.
func (e *fakeECR) registry(t *testing.T, who string, cfg Config) *Registry {
	t.Helper()
	ca := enginetest.NewAuthority(t)
	front := enginetest.NewTLSServer(t, ca, e.front, ecrTestHost, publicECR, strings.Replace(ecrTestHost, ".ecr.", ".ecr-fips.", 1))
	cfg.CA = ca.File
	r := newRegistry(t, cfg)
	dialTo(r, map[string]*httptest.Server{"": front})
	client := awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
		tr.Proxy, tr.TLSClientConfig = nil, &tls.Config{InsecureSkipVerify: true}
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, e.api.Listener.Addr().String())
		}
	})
	r.ecr.options = []func(*config.LoadOptions) error{
		config.WithHTTPClient(client), config.WithRetryMaxAttempts(1),
		config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(who, "secret-of-the-worker", "")),
	}
	return r
}

func awsFile(key string) string {
	return "[default]\naws_access_key_id = " + key + "\naws_secret_access_key = secret-of-the-function\n"
}

func wantCalls(t *testing.T, e *fakeECR, want ...string) {
	t.Helper()
	got := e.take()
	if len(got) != len(want) {
		t.Errorf("calls are %q, want %q", got, want)
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("call %d is %q, want %q", i, got[i], want[i])
		}
	}
}

func TestECRRepositoryIsMadeBeforeThePush(t *testing.T) {
	t.Parallel()
	e := newECR(t)
	r := e.registry(t, "WORKER", Config{Clouds: []string{cloudECR}})
	target := ecrTestHost + "/team/app:1"
	const create, login = "WORKER ecr.eu-west-1 CreateRepository 123456789012 team/app", "WORKER ecr.eu-west-1 GetAuthorizationToken"
	if err := r.Prepare(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	wantCalls(t, e, create, login)
	// Again, it is there already.
	if err := r.Prepare(t.Context(), target); err != nil {
		t.Error(err)
	}
	wantCalls(t, e, create)
	// Another repository gets the image by a copy, and is made for it.
	img := image(t, "amd64")
	s := newServer(t)
	push(t, s.host+"/x:1", img)
	r.transport.DialContext = route(r.transport.DialContext, s.host)
	if err := r.Tag(t.Context(), s.host+"/x@"+digestOf(t, img), ecrTestHost+"/other/app:1"); err != nil {
		t.Error(err)
	}
	wantCalls(t, e, "WORKER ecr.eu-west-1 CreateRepository 123456789012 other/app")
	if err := r.Verify(t.Context(), ecrTestHost+"/other/app@"+digestOf(t, img)); err != nil {
		t.Error(err)
	}
	if got := r.Redactor().Text("with " + ecrTestToken + " and " + base64.StdEncoding.EncodeToString([]byte("AWS:"+ecrTestToken))); got != "with *** and ***" {
		t.Errorf("the token is shown: %s", got)
	}
	// Not for others.
	if err := r.Prepare(t.Context(), s.host+"/new:1"); err != nil {
		t.Error(err)
	}
	wantCalls(t, e)
}

func TestWhoPushesToECR(t *testing.T) {
	t.Parallel()
	token := func(password string) string {
		return fmt.Sprintf(`{"auths":{%q:{"username":"AWS","password":%q}}}`, ecrTestHost, password)
	}
	secrets := store{
		"keys": {keyAWS: awsFile("FUNCTION")}, "nobody": {keyAWS: awsFile("NOBODY")}, "pusher": {keyAWS: awsFile("PUSHER")},
		"token": {keyDockerConfig: token(ecrTestToken)}, "old": {keyDockerConfig: token("old-token")}, "elsewhere": {keyConfig: authConfig("x.example", password)},
	}
	for name, tc := range map[string]struct {
		who, secret string
		clouds      []string
		exists      bool
		want        builder.Kind
		calls       []string
	}{
		"the worker, when it may": {"WORKER", "", []string{cloudECR}, false, "", []string{"WORKER Create", "WORKER Get"}},
		"nobody, when it may not": {"WORKER", "", nil, false, builder.KindPushDenied, nil},
		"the function's keys":     {"WORKER", "keys", nil, false, "", []string{"FUNCTION Create", "FUNCTION Get"}},
		"not the worker's then":   {"WORKER", "keys", []string{cloudECR}, false, "", []string{"FUNCTION Create", "FUNCTION Get"}},
		"unknown keys":            {"WORKER", "nobody", []string{cloudECR}, true, builder.KindPushDenied, []string{"NOBODY Create", "NOBODY Get"}},
		"keys that only push":     {"WORKER", "pusher", nil, true, "", []string{"PUSHER Create", "PUSHER Get"}},
		"and nowhere to":          {"WORKER", "pusher", nil, false, builder.KindPushDenied, []string{"PUSHER Create", "PUSHER Get"}},
		"the function's token":    {"WORKER", "token", []string{cloudECR}, true, "", nil},
		"which makes nothing":     {"WORKER", "token", []string{cloudECR}, false, builder.KindPushDenied, nil},
		"a token that is over":    {"WORKER", "old", []string{cloudECR}, true, builder.KindPushDenied, nil},
		"a secret for elsewhere":  {"WORKER", "elsewhere", []string{cloudECR}, false, "", []string{"WORKER Create", "WORKER Get"}},
		"a worker without rights": {"NOBODY", "", []string{cloudECR}, true, builder.KindPushDenied, []string{"NOBODY Create", "NOBODY Get"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newECR(t)
			e.repositories["team/app"] = tc.exists
			r := e.registry(t, tc.who, Config{Clouds: tc.clouds, Secrets: secrets})
			err := r.With(tc.secret).Prepare(t.Context(), ecrTestHost+"/team/app:1")
			if tc.want == "" && err != nil {
				t.Errorf("Prepare = %v", err)
			} else if tc.want != "" {
				wantKind(t, err, tc.want)
			}
			if name == "and nowhere to" && err != nil && (!strings.Contains(err.Error(), "NAME_UNKNOWN") || !strings.Contains(err.Error(), "AccessDeniedException")) {
				t.Errorf("error does not say why there is no repository: %v", err)
			}
			calls := e.take()
			for i, call := range calls {
				parts := strings.Fields(call)
				calls[i] = parts[0] + " " + parts[2][:strings.IndexAny(parts[2], "RA")]
			}
			if strings.Join(calls, ",") != strings.Join(tc.calls, ",") {
				t.Errorf("calls are %q, want %q", calls, tc.calls)
			}
			if got := r.Redactor().Text("secret-of-the-function"); tc.secret == "keys" && got != "***" {
				t.Error("the function's key is shown")
			}
		})
	}
}

func TestECROfEveryKind(t *testing.T) {
	t.Parallel()
	e := newECR(t)
	r := e.registry(t, "WORKER", Config{Clouds: []string{cloudECR}})
	fips := strings.Replace(ecrTestHost, ".ecr.", ".ecr-fips.", 1)
	if err := r.Prepare(t.Context(), fips+"/team/app:1"); err != nil {
		t.Error(err)
	}
	wantCalls(t, e, "WORKER ecr-fips.eu-west-1 CreateRepository 123456789012 team/app", "WORKER ecr-fips.eu-west-1 GetAuthorizationToken")
	e.set(func() { e.repositories["alias/team/app"] = true }) // as the registry calls it
	if err := r.Prepare(t.Context(), publicECR+"/alias/team/app:1"); err == nil {
		wantCalls(t, e, "WORKER ecr-public.us-east-1 CreateRepository team/app", "WORKER ecr-public.us-east-1 GetAuthorizationToken")
	} else {
		t.Error(err)
	}
	e.set(func() { e.broken = true })
	wantKind(t, r.Prepare(t.Context(), ecrTestHost+"/team/app:1"), builder.KindUnavailable)
	_, err := r.Access(t.Context(), ecrTestHost, "")
	wantKind(t, err, builder.KindUnavailable)
	for host, want := range map[string]bool{
		ecrTestHost: true, fips: true, publicECR: true, "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn": true,
		"123456789012.dkr-ecr.us-west-2.on.aws": true, "123456789012.dkr-ecr-fips.us-gov-west-1.on.aws": true,
		"123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu":          true,
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example": false, "evil.example": false, "x.public.ecr.aws": false,
		"evil-123456789012.dkr.ecr.eu-west-1.amazonaws.com": false, "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443": false,
		"123456789012.dkr.ecr.eu.west-1.amazonaws.com": false, "index.docker.io": false,
	} {
		if got := r.ecr.serves(host); got != want {
			t.Errorf("serves(%s) = %t, want %t", host, got, want)
		}
	}
}
