package source

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"kiln/builder"
	"kiln/builder/source/archivetest"
)

// s3Server is what `rclone serve s3` runs: it checks signatures.
func s3Server(tb testing.TB) (env map[string]string, put func(key string, raw []byte)) {
	tb.Helper()
	// Keys are known to the whole process, so each server has its own.
	id, secret := "id"+rand.Text(), "hunter2"+rand.Text()
	fake := gofakes3.New(s3mem.New(), gofakes3.WithV4Auth(map[string]string{id: secret}))
	server := httptest.NewServer(fake.Server())
	tb.Cleanup(server.Close)
	client, err := minio.New(strings.TrimPrefix(server.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4(id, secret, ""), Region: "us-east-1"})
	if err == nil {
		err = client.MakeBucket(tb.Context(), "bucket", minio.MakeBucketOptions{})
	}
	if err != nil {
		tb.Fatal(err)
	}
	put = func(key string, raw []byte) {
		tb.Helper()
		if _, err := client.PutObject(tb.Context(), "bucket", key, strings.NewReader(string(raw)), int64(len(raw)), minio.PutObjectOptions{}); err != nil {
			tb.Fatal(err)
		}
	}
	return map[string]string{"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": server.URL, "AWS_REGION": "us-east-1"}, put
}

func TestSourcesInARealS3Server(t *testing.T) {
	t.Parallel()
	env, put := s3Server(t)
	put("dir/my project.tar.gz", archiveBytes(t, "a.tar.gz", archivetest.Text("job.py", "print()")))
	put("job.py", []byte("print(1)"))
	s := newSources(t, nil)
	for url, want := range map[string][]string{
		"s3://bucket/dir/my project.tar.gz": {"job.py=print()"}, "s3://bucket/job.py": {"job.py=print(1)"},
	} {
		// The second time the server says that nothing changed.
		first, _ := fetched(t, s, url, env)
		second, dir := fetched(t, s, url, env)
		if diff := cmp.Diff(want, dir.List(t)); diff != "" || first != second {
			t.Errorf("%s is %s and %s (-want +got):\n%s", url, first, second, diff)
		}
	}
	with := func(change map[string]string) map[string]string {
		changed := map[string]string{}
		maps.Copy(changed, env)
		maps.Copy(changed, change)
		return changed
	}
	for name, tc := range map[string]struct {
		url  string
		env  map[string]string
		kind builder.Kind
		says string
	}{
		"no key":         {"s3://bucket/gone.zip", env, builder.KindSourceNotFound, "404"},
		"no bucket":      {"s3://nobucket/x.zip", env, builder.KindSourceNotFound, "404"},
		"wrong secret":   {"s3://bucket/job.py", with(map[string]string{"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}), builder.KindSourceNotFound, "AWS_ACCESS_KEY_ID"},
		"no credentials": {"s3://bucket/job.py", with(map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}), builder.KindSourceNotFound, "AWS_ACCESS_KEY_ID"},
		"half of them":   {"s3://bucket/job.py", with(map[string]string{"AWS_SECRET_ACCESS_KEY": ""}), builder.KindInvalidRequest, "only one"},
		"bad endpoint":   {"s3://bucket/job.py", with(map[string]string{"AWS_ENDPOINT_URL": "localhost"}), builder.KindInvalidRequest, "AWS_ENDPOINT_URL"},
		"plain endpoint": {"s3://bucket/job.py", with(map[string]string{"AWS_ENDPOINT_URL": "http://minio.example.com"}), builder.KindInvalidRequest, "source.insecure"},
		"server is gone": {"s3://bucket/job.py", with(map[string]string{"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}), builder.KindUnavailable, "refused"},
	} {
		_, err := s.Pin(t.Context(), tc.url, tc.env)
		if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %s: %v, want %s with %q", name, builder.KindOf(err), err, tc.kind, tc.says)
		}
	}
}

func TestUnchangedS3ObjectsAreNotDownloadedAgain(t *testing.T) {
	t.Parallel()
	env, put := s3Server(t)
	put("x.bin", make([]byte, 1<<16))
	s := newSources(t, nil)
	l, err := parse("s3://bucket/x.bin")
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.openS3(t.Context(), l, env, "")
	if err != nil || o.tag == "" || o.size != 1<<16 {
		t.Fatalf("openS3() = %+v, %v", o, err)
	}
	_ = o.body.Close()
	if again, err := s.openS3(t.Context(), l, env, o.tag); err != nil || again.body != nil {
		t.Errorf("openS3(%s) = %+v, %v; want no body", o.tag, again, err)
	}
}

func TestTheMachinesOwnCredentialsAreNotForTenants(t *testing.T) {
	env, put := s3Server(t)
	put("job.py", []byte("print(1)"))
	t.Setenv("AWS_ACCESS_KEY_ID", env["AWS_ACCESS_KEY_ID"])
	t.Setenv("AWS_SECRET_ACCESS_KEY", env["AWS_SECRET_ACCESS_KEY"])
	request := map[string]string{"AWS_ENDPOINT_URL": env["AWS_ENDPOINT_URL"], "AWS_REGION": "us-east-1"}
	if v, err := newSources(t, nil).Pin(t.Context(), "s3://bucket/job.py", request); builder.KindOf(err) != builder.KindSourceNotFound {
		t.Errorf("without the operator's word: %s, %v", v, err)
	}
	if _, err := newSources(t, func(c *Config) { c.Ambient = true }).Pin(t.Context(), "s3://bucket/job.py", request); err != nil {
		t.Errorf("with it: %v", err)
	}
}

// gsServer speaks the JSON API of Cloud Storage for one object, and gives tokens to a
// service account whose assertion is signed with its key.
func gsServer(tb testing.TB, content string) (env map[string]string) {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	const token = "ya29.hunter2"
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		head, signature, _ := cutLast(r.FormValue("assertion"), ".")
		raw, _ := base64.RawURLEncoding.DecodeString(signature)
		sum := sha256.Sum256([]byte(head))
		_, claims, _ := strings.Cut(head, ".")
		claim, _ := base64.RawURLEncoding.DecodeString(claims)
		if rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], raw) != nil || !strings.Contains(string(claim), gsScope) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
	})
	mux.HandleFunc("GET /storage/v1/b/bucket/o/{key}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+token:
			w.WriteHeader(http.StatusUnauthorized)
		case r.PathValue("key") != "dir/my job.py" || r.URL.Query().Get("alt") != "media":
			http.NotFound(w, r)
		default:
			_, _ = io.WriteString(w, content)
		}
	})
	server := httptest.NewServer(mux)
	tb.Cleanup(server.Close)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "kiln@example.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": server.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return map[string]string{"STORAGE_EMULATOR_HOST": server.URL, "GOOGLE_APPLICATION_CREDENTIALS": string(account)}
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func TestSourcesInCloudStorage(t *testing.T) {
	t.Parallel()
	env := gsServer(t, "print()")
	s := newSources(t, nil)
	for _, scheme := range []string{"gs", "gcs"} {
		_, dir := fetched(t, s, scheme+"://bucket/dir/my job.py", env)
		if diff := cmp.Diff([]string{"my job.py=print()"}, dir.List(t)); diff != "" {
			t.Errorf("tree (-want +got):\n%s", diff)
		}
	}
	for name, tc := range map[string]struct {
		key, credentials string
		kind             builder.Kind
		says             string
	}{
		"no object":        {"gone", env["GOOGLE_APPLICATION_CREDENTIALS"], builder.KindSourceNotFound, "404"},
		"no credentials":   {"dir/my job.py", "", builder.KindSourceNotFound, "GOOGLE_APPLICATION_CREDENTIALS"},
		"a path":           {"x", "/etc/hunter2.json", builder.KindInvalidRequest, "not JSON"},
		"external account": {"x", `{"type":"external_account","token_url":"http://169.254.169.254/hunter2"}`, builder.KindInvalidRequest, "service_account"},
		"another key": {
			"x", strings.Replace(gsServer(t, "")["GOOGLE_APPLICATION_CREDENTIALS"], "http://127", "http://169.254.169.254/?x=127", 1),
			builder.KindInvalidRequest, "refused",
		},
	} {
		_, err := s.Pin(t.Context(), "gs://bucket/"+tc.key, map[string]string{"STORAGE_EMULATOR_HOST": env["STORAGE_EMULATOR_HOST"], "GCP_CREDENTIALS": tc.credentials})
		if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %s: %v, want %s with %q", name, builder.KindOf(err), err, tc.kind, tc.says)
		}
	}
}

// azureServer gives one blob to who signs with the account's key, by the rules of
// https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key, or has
// the signature of a SAS token.
func azureServer(tb testing.TB, key []byte) *httptest.Server {
	tb.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var headers []string
		for name, values := range r.Header {
			if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-ms-") {
				headers = append(headers, lower+":"+values[0]+"\n")
			}
		}
		slices.Sort(headers)
		text := "GET\n" + strings.Repeat("\n", 8) + r.Header.Get("If-None-Match") + "\n\n\n" + strings.Join(headers, "") + "/account" + r.URL.EscapedPath()
		mac := hmac.New(sha256.New, key)
		_, _ = io.WriteString(mac, text)
		signed := r.Header.Get("Authorization") == "SharedKey account:"+base64.StdEncoding.EncodeToString(mac.Sum(nil))
		switch {
		case !signed && r.URL.Query().Get("sig") != "hunter2":
			w.Header().Set("x-ms-error-code", "AuthenticationFailed")
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path != "/account/container/dir/my job.py":
			w.Header().Set("x-ms-error-code", "BlobNotFound")
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("If-None-Match") == `"1"`:
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("ETag", `"1"`)
			_, _ = io.WriteString(w, "print()")
		}
	}))
	tb.Cleanup(server.Close)
	return server
}

func TestSourcesInAzure(t *testing.T) {
	t.Parallel()
	key := []byte("hunter2hunter2")
	server := azureServer(t, key)
	connection := func(credential string) map[string]string {
		return map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=" + server.URL + "/account;" + credential}
	}
	byKey := connection("AccountName=account;AccountKey=" + base64.StdEncoding.EncodeToString(key))
	s := newSources(t, nil)
	for _, env := range []map[string]string{byKey, byKey, connection("SharedAccessSignature=sv=2020&sig=hunter2")} {
		_, dir := fetched(t, s, "az://container/dir/my job.py", env)
		if diff := cmp.Diff([]string{"my job.py=print()"}, dir.List(t)); diff != "" {
			t.Errorf("tree (-want +got):\n%s", diff)
		}
	}
	for name, tc := range map[string]struct {
		url  string
		env  map[string]string
		kind builder.Kind
		says string
	}{
		"no blob":       {"az://container/gone", byKey, builder.KindSourceNotFound, "BlobNotFound"},
		"wrong key":     {"az://container/x", connection("AccountName=account;AccountKey=" + base64.StdEncoding.EncodeToString([]byte("x"))), builder.KindSourceNotFound, "AZURE_STORAGE_ACCOUNT_KEY"},
		"wrong SAS":     {"az://container/x", connection("SharedAccessSignature=sv=2020&sig=hunter2x"), builder.KindSourceNotFound, "AuthenticationFailed"},
		"no account":    {"az://container/x", nil, builder.KindInvalidRequest, "AZURE_STORAGE_ACCOUNT_NAME"},
		"bad account":   {"az://container/x", map[string]string{"AZURE_STORAGE_ACCOUNT_NAME": "evil.example.com/"}, builder.KindInvalidRequest, "AZURE_STORAGE_ACCOUNT_NAME"},
		"bad string":    {"az://container/x", map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "hunter2"}, builder.KindInvalidRequest, "AZURE_STORAGE_CONNECTION_STRING"},
		"bad key":       {"az://container/x", map[string]string{"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_KEY": "%"}, builder.KindInvalidRequest, "credentials for Azure"},
		"plain account": {"az://container/x", map[string]string{"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=http://azurite.example.com/account;AccountName=account;AccountKey=eA=="}, builder.KindInvalidRequest, "source.insecure"},
	} {
		_, err := s.Pin(t.Context(), tc.url, tc.env)
		if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %s: %v, want %s with %q", name, builder.KindOf(err), err, tc.kind, tc.says)
		}
	}
}

func TestAzureCredentialsAreTakenInMLRunsOrder(t *testing.T) {
	t.Parallel()
	s := newSources(t, nil)
	for url, env := range map[string]map[string]string{
		"https://account.blob.core.windows.net/container/x.zip":                {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "eA=="},
		"https://account.blob.core.windows.net/container/x.zip?sv=1&sig=s":     {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=s"},
		"https://serviceacc.blob.core.windows.net/container/x.zip":             {"AZURE_STORAGE_ACCOUNT_NAME": "serviceacc", "AZURE_STORAGE_TENANT_ID": "t", "AZURE_STORAGE_CLIENT_ID": "c", "AZURE_STORAGE_CLIENT_SECRET": "s"},
		"https://anonymous.blob.core.windows.net/container/x.zip":              {"AZURE_STORAGE_ACCOUNT": "anonymous"},
		"https://other.blob.core.chinacloudapi.cn/container/x.zip?sv=1&sig=s2": {"AZURE_STORAGE_CONNECTION_STRING": "unused", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=s2"},
	} {
		source := "az://container/x.zip"
		if strings.Contains(url, "other") {
			source = "wasbs://container@other.blob.core.chinacloudapi.cn/x.zip"
		}
		l, err := parse(source)
		if err != nil {
			t.Fatal(err)
		}
		client, err := s.azureClient(l, env)
		if err != nil || client.URL() != url {
			t.Errorf("%v gives %v, %v; want %s", env, client, err, url)
		}
	}
}

func TestSourcesInV3IO(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-v3io-session-key") != "hunter2":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path != "/projects/a b/job.py":
			http.NotFound(w, r)
		default:
			_, _ = io.WriteString(w, "print()")
		}
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	s := newSources(t, func(c *Config) { c.V3IOAPI = server.URL })
	env := map[string]string{"V3IO_ACCESS_KEY": "hunter2"}
	for _, url := range []string{"v3io://" + host + "/projects/a b/job.py", "v3io:///projects/a b/job.py"} {
		_, dir := fetched(t, s, url, env)
		if diff := cmp.Diff([]string{"job.py=print()"}, dir.List(t)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", url, diff)
		}
	}
	for url, tc := range map[string]struct {
		env  map[string]string
		kind builder.Kind
		says string
	}{
		"v3io://" + host + "/projects/gone.py":   {env, builder.KindSourceNotFound, "404"},
		"v3io:///projects/a b/job.py":            {map[string]string{"V3IO_ACCESS_KEY": "hunter2x"}, builder.KindSourceNotFound, "V3IO_ACCESS_KEY"},
		"v3io:///projects/x.py":                  {map[string]string{"V3IO_API": "webapi"}, builder.KindInvalidRequest, "V3IO_API"},
		"v3io:///projects/y.py":                  {map[string]string{"V3IO_API": "http://webapi.example.com"}, builder.KindInvalidRequest, "source.insecure"},
		"v3ios://" + host + "/projects/a b/j.py": {env, builder.KindUnavailable, "HTTPS"},
	} {
		_, err := s.Pin(t.Context(), url, tc.env)
		if builder.KindOf(err) != tc.kind || !strings.Contains(fmt.Sprint(err), tc.says) || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %s: %v, want %s with %q", url, builder.KindOf(err), err, tc.kind, tc.says)
		}
	}
}
