package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"kiln/builder/enginetest"
	"kiln/cmd/cli"
	"kiln/deploy/nats/natstest"
	"kiln/events/natsbus"
)

// patient has everything that builds need: a NATS server, a registry, a package index and
// an API server. Tests take something away.
type patient struct {
	dir      string
	nats     *natsServer
	registry *enginetest.Registry
	base     string
	index    *httptest.Server
	// needsLogin lets the index ask for one.
	needsLogin bool
	// denied is in the body of calls that the API server does not allow; refusal, when
	// set, is its answer to a Job.
	denied, refusal string
	// settings are flags without dashes; an empty value leaves one out.
	settings map[string]string
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{dir: t.TempDir(), registry: enginetest.NewRegistry(t)}
	p.base = enginetest.PushBase(t, p.registry.Host+"/base").Ref
	server, err := startNATS(filepath.Join(p.dir, "nats"), "127.0.0.1:0", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.stop)
	p.nats = server
	p.index = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch _, password, _ := r.BasicAuth(); {
		case p.needsLogin && password != "hunter2":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path != "/simple":
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	p.index.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	p.index.StartTLS()
	t.Cleanup(p.index.Close)
	ca := filepath.Join(p.dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.index.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p.settings = map[string]string{
		"nats-url": server.url(), "registry-url": p.registry.Host + "/team", "mlrun-image-by-kind": "job=" + p.base,
		"pip-index-url": strings.Replace(p.index.URL, "https://", "https://user:hunter2@", 1) + "/simple", "pip-ca": ca,
		"engine": "kube", "kube-kubeconfig": p.startAPI(t), "kube-image": "registry.example.com/kiln:1",
	}
	return p
}

// startAPI serves what kube.Check asks for, and returns a kubeconfig.
func (p *patient) startAPI(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews"):
			allowed := !bytes.Contains(body, []byte("resourcequotas")) && (p.denied == "" || !bytes.Contains(body, []byte(p.denied)))
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "status": {"allowed": %t}}`, allowed)
		case strings.HasSuffix(r.URL.Path, "/namespaces/builds/jobs") && r.URL.Query().Get("dryRun") == "All" && p.refusal == "":
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"kind": "Job", "apiVersion": "batch/v1"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": %q}`, p.refusal)
		}
	}))
	t.Cleanup(srv.Close)
	file := filepath.Join(p.dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": %q}}],
		"users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "builds"}}]}`, srv.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (p *patient) provision(t *testing.T, topology natsbus.Topology) {
	t.Helper()
	nc, err := p.nats.connect(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := natsbus.Provision(t.Context(), js, topology); err != nil {
		t.Fatal(err)
	}
}

func (p *patient) args(more ...string) []string {
	args := []string{"doctor"}
	for name, value := range p.settings {
		if value != "" {
			args = append(args, "--"+name+"="+value)
		}
	}
	return append(args, more...)
}

func (p *patient) diagnose(t *testing.T, more ...string) (checks []check, code int) {
	t.Helper()
	out, errs, code := execute(t, "", p.args(append(more, "-o", "json")...)...)
	var report struct {
		OK     bool
		Checks []check
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("exit code %d: %v\n%s%s", code, err, out, errs)
	}
	if report.OK != (code == cli.ExitOK) || errs != "" || strings.Contains(out, "hunter2") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	return report.Checks, code
}

func TestDoctorFindsNothingWhereAllIsThere(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.provision(t, natsbus.Topology{})
	p.needsLogin = true
	checks, code := p.diagnose(t)
	if code != cli.ExitOK {
		t.Errorf("exit code %d: %+v", code, checks)
	}
	for _, c := range checks {
		if c.State != checkOK || c.Fix != "" {
			t.Errorf("check = %+v", c)
		}
	}
	out, _, code := execute(t, "", p.args()...)
	if code != cli.ExitOK || !strings.Contains(out, "ok  NATS ") || !strings.Contains(out, "may push "+p.registry.Host+"/team/") || !strings.Contains(out, "ok  kubernetes Job") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestDoctorSaysWhatIsMissingAndHowToGetIt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		take  func(t *testing.T, p *patient)
		check string
		// part of the detail and of the fix
		detail, fix string
		code        int
	}{
		"no server":       {func(_ *testing.T, p *patient) { p.settings["nats-url"] = "nats://u:hunter2@127.0.0.1:1" }, "NATS", "kiln up", "nats.url", cli.ExitNoConnection},
		"not provisioned": {func(_ *testing.T, p *patient) { p.settings["nats-prefix"] = "other" }, "JetStream", "not there: stream OTHER_BUILD, ", "kiln provision", cli.ExitFailed},
		"drift":           {func(_ *testing.T, p *patient) { p.settings["stream-max-ack-pending"] = "3" }, "JetStream", "max ack pending is 256, the configuration says 3", "stream.*", cli.ExitFailed},
		"wrong topology":  {func(_ *testing.T, p *patient) { p.settings["stream-replicas"] = "2" }, "JetStream", "replicas must be", "stream.*", cli.ExitFailed},
		"push refused":    {func(_ *testing.T, p *patient) { p.registry.Fault(enginetest.BasicAuth("u", "hunter2")) }, "registry", "401 Unauthorized", "registry.docker_config", cli.ExitFailed},
		"registry away":   {func(_ *testing.T, p *patient) { p.settings["registry-url"] = "127.0.0.1:1" }, "registry", "refused", "registry.ca", cli.ExitFailed},
		"no registry":     {func(_ *testing.T, p *patient) { p.settings["registry-url"] = "" }, "registry", "registry", "registry.url", cli.ExitFailed},
		"no base": {func(_ *testing.T, p *patient) {
			p.settings["mlrun-image-by-kind"] = "job=" + p.registry.Host + "/base:none"
		}, "base image", "none", "mlrun.image_by_kind", cli.ExitFailed},
		"index login": {func(_ *testing.T, p *patient) {
			p.needsLogin = true
			p.settings["pip-index-url"] = p.index.URL + "/simple"
		}, "pip index", "refuses the login", "user and password", cli.ExitFailed},
		"index path":  {func(_ *testing.T, p *patient) { p.settings["pip-index-url"] = p.index.URL }, "pip index", "404", "/simple", cli.ExitFailed},
		"index CA":    {func(_ *testing.T, p *patient) { p.settings["pip-ca"] = "" }, "pip index", "certificate", "pip.ca", cli.ExitFailed},
		"index away":  {func(_ *testing.T, p *patient) { p.index.Close() }, "pip index", "refused", "reachable", cli.ExitFailed},
		"permissions": {func(_ *testing.T, p *patient) { p.denied = "secrets" }, "kubernetes permissions", "create secrets", "role.yaml", cli.ExitFailed},
		"namespace":   {func(_ *testing.T, p *patient) { p.refusal = `namespaces "builds" not found` }, "kubernetes Job", "not found", "kubectl create namespace builds", cli.ExitFailed},
		"no image":    {func(_ *testing.T, p *patient) { p.settings["kube-image"] = "" }, "kubernetes images", "kube.image", "make image", cli.ExitFailed},
		"image name":  {func(_ *testing.T, p *patient) { p.settings["kube-executor-image"] = "no name" }, "kubernetes images", `"no name"`, "kube.executor_image", cli.ExitFailed},
		"no cluster":  {func(t *testing.T, p *patient) { t.Helper(); p.settings["kube-kubeconfig"] = awayConfig(t) }, "kubernetes", "refused", "API server", cli.ExitFailed},
		"class":       {func(_ *testing.T, p *patient) { p.settings["kube-classes"] = "default=cpu" }, "kubernetes", "kube-classes", "correct", cli.ExitFailed},
		"sandbox": {func(_ *testing.T, p *patient) {
			p.settings["engine"], p.settings["sandbox-runtime"] = "sandbox", "/nowhere/runc"
		}, "sandbox", "/nowhere/runc", "install runc", cli.ExitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.provision(t, natsbus.Topology{})
			tc.take(t, p)
			checks, code := p.diagnose(t)
			found := slices.ContainsFunc(checks, func(c check) bool {
				return c.Name == tc.check && c.State == checkMissing && strings.Contains(c.Detail, tc.detail) && strings.Contains(c.Fix, tc.fix)
			})
			if !found || code != tc.code {
				t.Errorf("exit code %d, want %d and %s: %q -> %q in\n%+v", code, tc.code, tc.check, tc.detail, tc.fix, checks)
			}
		})
	}
}

// awayConfig is a kubeconfig of a cluster that does not answer.
func awayConfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "builds"}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDoctorNamesAServerWithoutJetStreamAndAUserWithoutRights(t *testing.T) {
	t.Parallel()
	secured := startSecured(t)
	p := newPatient(t)
	maps.Copy(p.settings, map[string]string{"nats-url": secured.url, "nats-ca": secured.ca, "nats-user": "kiln-publisher", "nats-password": natstest.Password})
	checks, code := p.diagnose(t)
	if c := checks[1]; code != cli.ExitFailed || !strings.Contains(c.Detail, "permissions violation") || !strings.Contains(c.Fix, "roles.conf") {
		t.Errorf("exit code %d: %+v", code, c)
	}
	p.settings["nats-user"] = "admin"
	checks, code = p.diagnose(t)
	if c := checks[1]; code != cli.ExitFailed || !strings.Contains(c.Detail, "JetStream is off") || !strings.Contains(c.Fix, "JetStream") {
		t.Errorf("exit code %d: %+v", code, c)
	}
}

func TestDoctorChecksTheImagesOfAFunction(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.provision(t, natsbus.Topology{})
	file := filepath.Join(p.dir, "function.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("kind: job\nmetadata: {name: f}\nspec: {build: {base_image: " + p.registry.Host + "/other:1, image: " + p.registry.Host + "/mine:2, commands: [ls]}}\n")
	checks, code := p.diagnose(t, "-f", file)
	text := fmt.Sprint(checks)
	if code != cli.ExitFailed || !strings.Contains(text, "may push "+p.registry.Host+"/mine:2") || !strings.Contains(text, "/other") {
		t.Errorf("exit code %d: %s", code, text)
	}
	write("kind: job\nspec: 3\n")
	if _, errs, code := execute(t, "", p.args("-f", file)...); code != cli.ExitUsage {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
