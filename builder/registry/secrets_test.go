package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

// secretFile writes a file of a folder of secrets.
func secretFile(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDirReadsEveryLayout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"kube/.dockerconfigjson", "docker/config.json", "plain.json", "aws/credentials", "both/config.json", "both.json", "both/credentials", "a.json"} {
		secretFile(t, dir, name, name)
	}
	// What kubelet makes of a secret.
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "mounted", "..2026_11"), 0o700),
		os.Symlink("..2026_11", filepath.Join(dir, "mounted", "..data")),
		os.Symlink(filepath.Join("..data", keyDockerConfig), filepath.Join(dir, "mounted", keyDockerConfig))); err != nil {
		t.Fatal(err)
	}
	secretFile(t, dir, "mounted/..2026_11/"+keyDockerConfig, "linked")
	for name, want := range map[string]map[string]string{
		"kube":    {keyDockerConfig: "kube/.dockerconfigjson"},
		"docker":  {keyConfig: "docker/config.json"},
		"plain":   {keyConfig: "plain.json"},
		"aws":     {keyAWS: "aws/credentials"},
		"both":    {keyConfig: "both/config.json", keyAWS: "both/credentials"},
		"mounted": {keyDockerConfig: "linked"},
	} {
		got := map[string]string{}
		data, err := Dir(dir).Secret(t.Context(), name)
		for key, raw := range data {
			got[key] = string(raw)
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, name := range []string{"nobody", "a.json"} {
		_, err := Dir(dir).Secret(t.Context(), name)
		if !errors.Is(err, ErrNoSecret) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), name+"/.dockerconfigjson") {
			t.Errorf("%s: %v, want ErrNoSecret with the places", name, err)
		}
	}
}

func TestDirStaysInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	dir := filepath.Join(outside, "secrets")
	secretFile(t, outside, "config.json", "outside")
	secretFile(t, outside, "other/config.json", "outside")
	secretFile(t, dir, "fine/config.json", "inside")
	if err := errors.Join(
		os.Symlink(filepath.Join(outside, "other"), filepath.Join(dir, "linked")),
		os.Symlink("../other/config.json", filepath.Join(dir, "relative.json")),
		os.MkdirAll(filepath.Join(dir, "folder", "config.json"), 0o700),
		syscall.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600),
		os.WriteFile(filepath.Join(dir, "huge.json"), bytes.Repeat([]byte("x"), maxSecret+1), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"", ".", "..", "../other", "../", "/etc/passwd", "/", "fine/../../other", "fine/", "fine/config.json", "a/b", `..\fine`,
		"fine\x00", "fine\n", " fine", "-x", ".hidden", "x.", strings.Repeat("x", 300), "%2e%2e", "ünï",
	} {
		if data, err := Dir(dir).Secret(t.Context(), name); !errors.Is(err, ErrNoSecret) || len(data) > 0 {
			t.Errorf("%.40q: %q, %v, want ErrNoSecret", name, data, err)
		} else if strings.ContainsAny(err.Error(), "\n\x00") || len(err.Error()) > 500 {
			t.Errorf("%.40q: error repeats it raw: %q", name, err)
		}
	}
	for _, name := range []string{"linked", "relative", "folder", "pipe", "huge"} {
		if data, err := Dir(dir).Secret(t.Context(), name); err == nil || len(data) > 0 {
			t.Errorf("%s: %.40q, %v, want an error", name, data, err)
		}
	}
}

// FuzzSecretName holds that no name reaches outside of the folder.
func FuzzSecretName(f *testing.F) {
	for _, name := range []string{"fine", "../x", "a/../../x", "..", "x\x00", "/x", "con", strings.Repeat("a/", 99)} {
		f.Add(name)
	}
	outside := f.TempDir()
	dir := filepath.Join(outside, "d")
	for _, place := range []string{outside, filepath.Join(outside, "x"), dir} {
		if err := errors.Join(os.MkdirAll(place, 0o700), os.WriteFile(filepath.Join(place, "config.json"), []byte("outside"), 0o600)); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, name string) {
		data, err := Dir(dir).Secret(context.Background(), name)
		if err == nil && name != "config" {
			t.Errorf("%q reads %q", name, data)
		}
	})
}

// store is a SecretStore of fixed secrets.
type store map[string]map[string]string

func (s store) Secret(_ context.Context, name string) (map[string][]byte, error) {
	if name == "broken" {
		return nil, errors.New("API is down")
	}
	secret, ok := s[name]
	if !ok {
		return nil, fmt.Errorf("%w: looked for %s in the test", ErrNoSecret, name)
	}
	data := map[string][]byte{}
	for key, value := range secret {
		data[key] = []byte(value)
	}
	return data, nil
}

func TestSecretsThatCannotBeUsedAreErrors(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/x:1", image(t, "amd64"))
	r := newRegistry(t, Config{Secrets: store{
		"no-json": {keyDockerConfig: `{"auths":{"h":{"auth":"` + password}, "other-keys": {"tls.crt": "x"}, "no-keys": {keyAWS: "[other]\naws_access_key_id=x"},
	}})
	s.countAll()
	for name, want := range map[string]struct {
		kind builder.Kind
		says string
	}{
		"nobody":     {builder.KindInvalidRequest, "looked for nobody in the test"},
		"no-json":    {builder.KindUnavailable, "not a valid docker config"},
		"other-keys": {builder.KindInvalidRequest, "none of .dockerconfigjson"},
		"no-keys":    {builder.KindUnavailable, "aws_access_key_id"},
		"broken":     {builder.KindUnavailable, "API is down"},
	} {
		bound := r.With(name)
		_, err := bound.Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
		_, accessErr := r.Access(t.Context(), s.host, name)
		for what, err := range map[string]error{
			"Resolve": err, "Access": accessErr, "Prepare": bound.Prepare(t.Context(), s.host+"/x:2"),
			"Verify": bound.Verify(t.Context(), s.host+"/x@sha256:"+strings.Repeat("0", 64)),
			"Tag":    bound.Tag(t.Context(), s.host+"/x@sha256:"+strings.Repeat("0", 64), s.host+"/y:1"),
		} {
			wantKind(t, err, want.kind)
			if err != nil && (!strings.Contains(err.Error(), want.says) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), password)) {
				t.Errorf("%s with %s: error %v, want one that says %q", what, name, err, want.says)
			}
		}
	}
	if n := s.countAll(); n > 0 {
		t.Errorf("the registry was asked %d times, by nobody", n)
	}
	_, err := newRegistry(t, Config{}).With("any").Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
	wantKind(t, err, builder.KindInvalidRequest)
	if err != nil && !strings.Contains(err.Error(), "registry.secrets_dir") {
		t.Errorf("without a store: %v", err)
	}
}

func TestNamedSecretGoesFirst(t *testing.T) {
	t.Parallel()
	one, two := newServer(t), newServer(t)
	var current atomic.Value
	current.Store(password)
	for _, s := range []*server{one, two} {
		push(t, s.host+"/x:1", image(t, "amd64"))
		s.set(basicAuth(&current))
	}
	dir := t.TempDir()
	secretFile(t, dir, "right/.dockerconfigjson", authConfig(one.host, password))
	secretFile(t, dir, "wrong.json", authConfig(one.host, "another-password"))
	secretFile(t, dir, "helper.json", `{"credsStore":"evil","credHelpers":{"`+one.host+`":"evil"},"auths":{}}`)
	r := newRegistry(t, Config{Secrets: Dir(dir), DockerConfig: configFile(t, authConfig(two.host, password))})
	for _, tc := range []struct {
		host, secret string
		denied       bool
	}{
		{one.host, "", true},
		{one.host, "right", false},
		{one.host, "wrong", true},
		// The configured one is the next.
		{two.host, "", false},
		{two.host, "right", false},
		{two.host, "wrong", false},
		// No program is run for a secret.
		{one.host, "helper", true},
		{two.host, "helper", false},
	} {
		_, err := r.With(tc.secret).Resolve(t.Context(), tc.host+"/x:1", "linux/amd64")
		if tc.denied {
			wantKind(t, err, builder.KindPullDenied)
		} else if err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
		err = r.With(tc.secret).Prepare(t.Context(), tc.host+"/x:2")
		if tc.denied {
			wantKind(t, err, builder.KindPushDenied)
		} else if err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	// Rotated, the next operation has the new one.
	current.Store("a-new-password")
	secretFile(t, dir, "right/.dockerconfigjson", authConfig(one.host, "a-new-password"))
	if _, err := r.With("right").Resolve(t.Context(), one.host+"/x:1", "linux/amd64"); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	if access, err := r.Access(t.Context(), one.host, "right"); err != nil || access.Login.Password != "a-new-password" || !access.Insecure {
		t.Errorf("Access = %+v, %v", access, err)
	}
	if got := r.Redactor().Text("a-new-password " + encoded("another-password")); got != "*** ***" {
		t.Errorf("credentials of secrets are shown: %s", got)
	}
}

func TestOneSecretsAccessIsNoOthers(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/x:1", image(t, "amd64"))
	var current atomic.Value
	current.Store(password)
	s.set(basicAuth(&current))
	r := newRegistry(t, Config{Secrets: store{"right": {keyConfig: authConfig(s.host, password)}, "none": {keyConfig: `{}`}}})
	for range 2 {
		if _, err := r.With("right").Resolve(t.Context(), s.host+"/x:1", "linux/amd64"); err != nil {
			t.Fatal(err)
		}
		// The digest is remembered by now, but not for everybody.
		_, err := r.With("none").Resolve(t.Context(), s.host+"/x:1", "linux/amd64")
		wantKind(t, err, builder.KindPullDenied)
	}
}

func TestDockerHubHasManyNamesInASecret(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io", "registry-1.docker.io", "https://index.docker.io/v2/"} {
		r := newRegistry(t, Config{Secrets: store{"hub": {keyDockerConfig: authConfig(key, password)}}})
		access, err := r.Access(t.Context(), "index.docker.io", "hub")
		if err != nil || access.Login.Password != password {
			t.Errorf("%s: %+v, %v", key, access.Login, err)
		}
	}
}

func TestAWSKeysTakesNothingElse(t *testing.T) {
	t.Parallel()
	id, key, token := awsKeys([]byte("# comment\n[other]\naws_access_key_id=no\n\n[ default ]\ncredential_process = /bin/evil\n" +
		" AWS_ACCESS_KEY_ID = AKIA1 \naws_secret_access_key=a=b/c+d==\r\naws_session_token = tok\n[more]\naws_session_token=no\n"))
	if id != "AKIA1" || key != "a=b/c+d==" || token != "tok" {
		t.Errorf("awsKeys = %q, %q, %q", id, key, token)
	}
}

func TestPrepareSaysWhatARegistryRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		behave func(http.ResponseWriter, *http.Request) bool
		want   builder.Kind
	}{
		"401":             {only(http.MethodPost, "/blobs/", answer(http.StatusUnauthorized, "UNAUTHORIZED")), builder.KindPushDenied},
		"403":             {only(http.MethodPost, "/blobs/", answer(http.StatusForbidden, "DENIED")), builder.KindPushDenied},
		"no such project": {only(http.MethodPost, "/blobs/", answer(http.StatusNotFound, "NAME_UNKNOWN")), builder.KindPushDenied},
		"500":             {only(http.MethodPost, "/blobs/", answer(http.StatusInternalServerError, "UNKNOWN")), builder.KindUnavailable},
		"nothing":         {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.set(tc.behave)
			err := newRegistry(t, Config{}).Prepare(t.Context(), s.host+"/x:1")
			if tc.want == "" && err != nil {
				t.Errorf("Prepare = %v", err)
			} else if tc.want != "" {
				wantKind(t, err, tc.want)
			}
			if n := s.count("PUT manifests") + s.count("PUT blobs"); n > 0 {
				t.Errorf("%d things were pushed", n)
			}
		})
	}
	for _, wrong := range []string{"localhost:1/x@sha256:" + strings.Repeat("0", 64), "not a reference", ""} {
		wantKind(t, newRegistry(t, Config{}).Prepare(t.Context(), wrong), builder.KindInvalidRequest)
	}
}

func TestPrepareGivesTheUploadUp(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	given := make(chan string, 1)
	s.set(only(http.MethodDelete, "/blobs/uploads/", func(w http.ResponseWriter, r *http.Request) bool {
		given <- r.URL.Path
		w.WriteHeader(http.StatusNoContent)
		return true
	}))
	if err := newRegistry(t, Config{}).Prepare(t.Context(), s.host+"/team/x:1"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-given:
	case <-time.After(10 * time.Second):
		t.Error("the upload is left behind")
	}
}

func TestPrepareEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	s.set(only(http.MethodPost, "/blobs/", func(_ http.ResponseWriter, r *http.Request) bool {
		cancel(builder.ErrShutdown)
		<-r.Context().Done()
		return true
	}))
	if err := newRegistry(t, Config{}).Prepare(ctx, s.host+"/x:1"); !errors.Is(err, builder.ErrShutdown) {
		t.Errorf("Prepare = %v, want ErrShutdown", err)
	}
}
