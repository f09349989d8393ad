package kaniko

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func TestRegistriesAreThoseOfThePlan(t *testing.T) {
	t.Parallel()
	p := plan()
	p.Dockerfile += "FROM a.example/x AS built\nCOPY --from=built /x /y\nCOPY --chown=1:1 --from=b.example:5000/tools /x /y\n" +
		"COPY --from=0 /x /y\nRUN --mount=type=bind,from=c.example/data,target=/x --mount=from=d.example/data,target=/y true\nFROM BUILT\n"
	p.Executor.Flags = append(p.Executor.Flags, "--cache-repo=e.example/cache", "--cache=true")
	want := []string{
		"127.0.0.1:5001", "localhost:5000", "index.docker.io", "a.example", "b.example:5000", "c.example", "d.example", "e.example",
	}
	if diff := cmp.Diff(want, Registries(p)); diff != "" {
		t.Errorf("Registries (-want +got):\n%s", diff)
	}
}

func TestLoopbackOnlyIsInsecureByItself(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "localhost:1": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:5": true,
		"10.0.0.1": false, "localhost.example.com": false, "127.0.0.1.example.com:5": false, "index.docker.io": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("loopback(%s) = %v, want %v", host, got, want)
		}
	}
}

// reached are registries of every kind.
func reached() []builder.Access {
	return []builder.Access{
		{Host: "127.0.0.1:5001", Insecure: true},
		{
			Host: "corp.example:5000", CA: []byte("ca-pem"), ClientCert: []byte("cert-pem"), ClientKey: []byte("-----BEGIN key-pem"),
			Login: builder.Login{Username: "robot", Password: "hidden-password"},
		},
		{Host: "lab.example", SkipTLSVerify: true, Login: builder.Login{Username: "<token>", IdentityToken: "hidden-identity"}},
		{Host: "index.docker.io", Mirrors: []string{"mirror.example/hub", "other.example"}, Login: builder.Login{RegistryToken: "hidden-bearer"}},
	}
}

func TestArgsOfRegistries(t *testing.T) {
	t.Parallel()
	want := []string{
		"--insecure-registry=127.0.0.1:5001",
		"--insecure-registry=localhost:5000",
		"--registry-certificate=corp.example:5000=/guarded/registry-1-ca.crt",
		"--registry-client-cert=corp.example:5000=/guarded/registry-1-client.crt,/proc/self/environ",
		"--skip-tls-verify-registry=lab.example",
		"--registry-map=index.docker.io=mirror.example/hub",
		"--registry-map=index.docker.io=other.example",
	}
	opts := Options{Registries: reached(), Dir: "/guarded"}
	if diff := cmp.Diff(want, opts.flags(plan())); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
	if args := strings.Join(Args(plan(), opts), " "); !strings.Contains(args, strings.Join(want, " ")) || strings.Contains(args, "hidden") {
		t.Errorf("Args lack flags or show credentials: %s", args)
	}
}

func TestLoopbackWithTLSIsNotInsecure(t *testing.T) {
	t.Parallel()
	opts := Options{Registries: []builder.Access{{Host: "127.0.0.1:5001"}, {Host: "localhost:5000", CA: []byte("x")}}, Dir: "/g"}
	if diff := cmp.Diff([]string{"--registry-certificate=localhost:5000=/g/registry-1-ca.crt"}, opts.flags(plan())); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
}

func TestFilesHoldNoPasswordAndNoKey(t *testing.T) {
	t.Parallel()
	files, err := Options{Registries: reached(), Dir: "/guarded"}.Files()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range files {
		got[f.Name] = string(f.Data)
		if credentials := f.Name == "config.json"; credentials != (f.Mode == 0o400) {
			t.Errorf("%s has mode %o", f.Name, f.Mode)
		}
	}
	want := map[string]string{
		"registry-1-ca.crt":     "ca-pem",
		"registry-1-client.crt": "cert-pem",
		"config.json": `{"auths":{"https://index.docker.io/v1/":{"registrytoken":"hidden-bearer"},` +
			`"lab.example":{"auth":"PHRva2VuPjo=","identitytoken":"hidden-identity"}}}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Files (-want +got):\n%s", diff)
	}
}

func TestEnvBeginsWithTheKey(t *testing.T) {
	t.Parallel()
	env, err := Options{Registries: reached(), Dir: "/guarded"}.Env()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"KILN_CLIENT_KEY=\n-----BEGIN key-pem\n", "DOCKER_CONFIG=/guarded",
		`DOCKER_AUTH_CONFIG={"auths":{"corp.example:5000":{"auth":"` + builder.Login{Username: "robot", Password: "hidden-password"}.Basic() + `"}}}`,
	}
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("Env (-want +got):\n%s", diff)
	}
	if env, err = (Options{Dir: "/guarded"}).Env(); err != nil || !cmp.Equal(env, []string{"DOCKER_CONFIG=/guarded"}) {
		t.Errorf("Env without registries = %q, %v", env, err)
	}
}

func TestReachFollowsMirrorsOnce(t *testing.T) {
	t.Parallel()
	mirrors := map[string][]string{
		"index.docker.io": {"mirror.example/hub", "localhost:5000"}, "mirror.example": {"index.docker.io", "never.example"},
	}
	var asked []string
	got, err := Reach(plan(), func(host string) (builder.Access, error) {
		asked = append(asked, host)
		return builder.Access{Host: host, Mirrors: mirrors[host]}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1:5001", "localhost:5000", "index.docker.io", "mirror.example"}, asked); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	if got[2].Mirrors == nil || got[3].Mirrors != nil {
		t.Errorf("mirrors are %v and %v", got[2].Mirrors, got[3].Mirrors)
	}
	want := errors.New("no such secret")
	if _, err := Reach(plan(), func(string) (builder.Access, error) { return builder.Access{}, want }); !errors.Is(err, want) {
		t.Errorf("Reach = %v, want %v", err, want)
	}
}

func TestReachTakesOneClientKey(t *testing.T) {
	t.Parallel()
	keys := map[string]string{"127.0.0.1:5001": "one", "localhost:5000": "one"}
	access := func(host string) (builder.Access, error) {
		return builder.Access{Host: host, ClientCert: []byte("x"), ClientKey: []byte(keys[host])}, nil
	}
	if _, err := Reach(plan(), access); err != nil {
		t.Errorf("the same key twice: %v", err)
	}
	keys["index.docker.io"] = "two"
	_, err := Reach(plan(), access)
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "127.0.0.1:5001 and index.docker.io") {
		t.Errorf("two keys: %v, want invalid_request with both hosts", err)
	}
}

// FuzzHosts holds that whatever a Dockerfile names, flags stay single arguments that
// begin with what Kiln wrote, and files stay in their folder.
func FuzzHosts(f *testing.F) {
	f.Add("FROM a.example/x\nCOPY --from=b.example:1/y /a /b")
	f.Add("FROM --platform=x [::1]:5000/a@sha256:0 AS --from=x\nRUN --mount=from=,from=..")
	f.Fuzz(func(t *testing.T, dockerfile string) {
		p := builder.Plan{Destination: "r.example/x:1", Dockerfile: dockerfile}
		all, err := Reach(p, func(host string) (builder.Access, error) {
			return builder.Access{Host: host, CA: []byte("x"), Login: builder.Login{Username: "u", Password: host}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		opts := Options{Registries: all, Dir: "/guarded"}
		for _, arg := range opts.flags(p) {
			if !strings.HasPrefix(arg, "--registry-certificate=") || strings.ContainsAny(arg, " \t\r\n\x00;") {
				t.Errorf("argument %q", arg)
			}
		}
		files, err := opts.Files()
		if err != nil || !json.Valid(files[len(files)-1].Data) {
			t.Errorf("Files: %v, %v", files, err)
		}
	})
}
