package dashboard_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/nuclio"
	"kiln/builder/nuclio/dashboard"
	"kiln/builder/nuclio/nucliotest"
)

func client(t *testing.T, url string) *dashboard.Client {
	t.Helper()
	c, err := dashboard.New(dashboard.Config{URL: url, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func function(t *testing.T, name, project string) nuclio.Function {
	t.Helper()
	object, err := json.Marshal(map[string]any{"kind": "nuclio", "spec": map[string]any{"build": map[string]any{"code_origin": "here"}}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := nuclio.Spec{Object: object, Kind: "nuclio", Project: project, Name: name, Commands: []string{"ls"}}.Function(nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// finish looks until the deployment is done.
func finish(t *testing.T, c *dashboard.Client, id string, f nuclio.Function) (nuclio.Status, error) {
	t.Helper()
	for range 20 {
		if status, err := c.Deploy(t.Context(), id, f); err != nil || status.Done {
			return status, err
		}
	}
	t.Fatal("the deployment does not end")
	return nuclio.Status{}, nil
}

func TestAFunctionIsCreatedAndWatchedUntilItIsReady(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	f := function(t, "trainer", "demo")
	status, err := finish(t, client(t, d.URL), "r1", f)
	if err != nil || status.Image != "registry.example.com/processor:latest" || status.State != "ready" {
		t.Fatalf("got %+v, %v", status, err)
	}
	want := []string{
		"GET /api/functions/demo-trainer", "GET /api/projects/demo", "POST /api/projects", "POST /api/functions",
		"GET /api/functions/demo-trainer", "GET /api/functions/demo-trainer", "GET /api/functions/demo-trainer",
	}
	if diff := cmp.Diff(want, d.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	sent, _ := d.Sent("demo-trainer")
	annotations, _ := sent["metadata"].(map[string]any)["annotations"].(map[string]any)
	if annotations["nuclio.io/generated_by"] == nil || annotations["kiln.dev/requests"] == nil {
		t.Errorf("annotations = %v", annotations)
	}
	if _, changed := f.Config["metadata"].(map[string]any)["annotations"].(map[string]any)["kiln.dev/requests"]; changed {
		t.Error("the function was changed")
	}
}

func TestTheSameRequestDeploysOnceAndAnotherOneUpdates(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	c, f := client(t, d.URL), function(t, "trainer", "demo")
	for _, id := range []string{"r1", "r1", "r2", "r1", "r2"} {
		if _, err := finish(t, c, id, f); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	if _, times := d.Sent("demo-trainer"); times != 2 {
		t.Errorf("deployed %d times for two requests", times)
	}
}

func TestARequestWaitsForTheDeploymentOfAnother(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	c, f := client(t, d.URL), function(t, "trainer", "demo")
	for range 2 {
		if _, err := c.Deploy(t.Context(), "r1", f); err != nil {
			t.Fatal(err)
		}
	}
	status, err := c.Deploy(t.Context(), "r2", f)
	if _, times := d.Sent("demo-trainer"); err != nil || status.Done || times != 1 || !strings.Contains(status.State, "another request") {
		t.Errorf("got %+v, %v after %d deployments; want to wait", status, err, times)
	}
	for _, id := range []string{"r2", "r1"} {
		if _, err := finish(t, c, id, f); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestConcurrentRequestsAllEnd(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	c, f := client(t, d.URL), function(t, "trainer", "demo")
	var requests sync.WaitGroup
	for _, id := range []string{"r1", "r2", "r3", "r4"} {
		requests.Go(func() {
			for range 500 {
				status, err := c.Deploy(t.Context(), id, f)
				if err != nil && builder.KindOf(err) != builder.KindUnavailable {
					t.Errorf("%s: %v", id, err)
				}
				if status.Done {
					return
				}
			}
			t.Errorf("%s does not end", id)
		})
	}
	requests.Wait()
}

func TestABuildErrorIsTheFunctionsAndBringsItsLog(t *testing.T) {
	t.Parallel()
	logs := []map[string]any{
		{"level": "info", "message": "Building processor image", "time": 1},
		{"level": "error", "message": "Failed to build", "err": "exit status 1\nline two", "time": 2},
	}
	for name, tc := range map[string]struct {
		outcome nucliotest.Outcome
		says    string
	}{
		"message":   {nucliotest.Outcome{States: []string{"building", "error"}, Message: "pip: no matching distribution", Logs: logs}, "no matching distribution"},
		"log":       {nucliotest.Outcome{States: []string{"error"}, Logs: logs}, "(error) Failed to build"},
		"nothing":   {nucliotest.Outcome{States: []string{"error"}}, "does not say why"},
		"unhealthy": {nucliotest.Outcome{States: []string{"building", "unhealthy"}, Message: "crashes"}, "unhealthy: crashes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := nucliotest.New(t)
			d.Outcome(tc.outcome)
			c, f := client(t, d.URL), function(t, "trainer", "demo")
			for range 2 { // a repetition finds the same
				status, err := finish(t, c, "r1", f)
				if builder.KindOf(err) != builder.KindCommandFailed || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v, want command_failed with %q", err, tc.says)
				}
				if len(tc.outcome.Logs) > 0 {
					want := []string{"(info) Building processor image", "(error) Failed to build", "exit status 1", "line two"}
					if diff := cmp.Diff(want, status.Log); diff != "" {
						t.Errorf("log (-want +got):\n%s", diff)
					}
				}
			}
			if _, times := d.Sent("demo-trainer"); times != 1 {
				t.Errorf("deployed %d times", times)
			}
		})
	}
}

// answers makes the dashboard answer the matching request so.
func answers(method, path string, code int, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if method != r.Method || !strings.HasPrefix(r.URL.Path, path) {
			return false
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
		return true
	}
}

func TestErrorsSayWhoHasToAct(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		kind  builder.Kind
		says  string
	}{
		"reading breaks":     {answers("GET", "/api/functions", 500, `{"error":"no cluster"}`), builder.KindUnavailable, "500 Internal Server Error: no cluster"},
		"sending breaks":     {answers("POST", "/api/functions", 503, `try later`), builder.KindUnavailable, "503 Service Unavailable: try later"},
		"nobody may":         {answers("POST", "/api/functions", 403, ``), builder.KindUnavailable, "403 Forbidden"},
		"lost a race":        {answers("POST", "/api/functions", 409, `{"error":"two functions"}`), builder.KindUnavailable, "409 Conflict: two functions"},
		"bad configuration":  {answers("POST", "/api/functions", 400, `{"error":"bad trigger"}`), builder.KindInvalidRequest, "bad trigger"},
		"project breaks":     {answers("GET", "/api/projects", 500, ``), builder.KindUnavailable, "reading the project"},
		"no project":         {answers("POST", "/api/projects", 400, `{"error":"bad name"}`), builder.KindInvalidRequest, "creating the project"},
		"not a dashboard":    {answers("GET", "/api/functions", 200, `<html>`), builder.KindUnavailable, "is this the address"},
		"an endless message": {answers("POST", "/api/functions", 500, strings.Repeat("x", 1<<20)), builder.KindUnavailable, "x …"},
		"connection is cut":  {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, builder.KindUnavailable, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := nucliotest.New(t)
			d.Fault(tc.fault)
			c, f := client(t, d.URL), function(t, "trainer", "demo")
			_, err := c.Deploy(t.Context(), "r1", f)
			if err == nil || builder.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) || len(err.Error()) > 4<<10 {
				t.Errorf("got %.300v of kind %s, want %s with %q", err, builder.KindOf(err), tc.kind, tc.says)
			}
			if !strings.HasPrefix(err.Error(), "deploying demo-trainer with Nuclio: ") {
				t.Errorf("error %.200v does not say what was done", err)
			}
			d.Fault(nil)
			if _, err := finish(t, c, "r1", f); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestAnUpdateMayLoseARaceToo(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	c, f := client(t, d.URL), function(t, "trainer", "demo")
	if _, err := finish(t, c, "r1", f); err != nil {
		t.Fatal(err)
	}
	d.Fault(answers("PUT", "/api/functions", 412, `{"error":"Function is being provisioned"}`))
	if _, err := c.Deploy(t.Context(), "r2", f); builder.KindOf(err) != builder.KindUnavailable || !strings.Contains(err.Error(), "being provisioned") {
		t.Errorf("got %v, want unavailable", err)
	}
}

func TestADashboardThatHangsIsUnavailable(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	release := make(chan struct{})
	d.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	})
	t.Cleanup(func() { close(release) })
	c, err := dashboard.New(dashboard.Config{URL: d.URL, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Deploy(t.Context(), "r1", function(t, "trainer", "demo")); builder.KindOf(err) != builder.KindUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Deploy(ctx, "r1", function(t, "trainer", "demo")); err == nil {
		t.Error("a canceled context gave no error")
	}
}

func TestAnotherProjectsFunctionIsLeftAlone(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	c := client(t, d.URL)
	// a-b's c and a's b-c have the same name at Nuclio.
	if _, err := finish(t, c, "r1", function(t, "c", "a-b")); err != nil {
		t.Fatal(err)
	}
	_, err := c.Deploy(t.Context(), "r2", function(t, "b-c", "a"))
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("got %v, want invalid_request that names metadata.name", err)
	}
}

func TestCredentialsOfTheAddressAreUsedAndNotShown(t *testing.T) {
	t.Parallel()
	d := nucliotest.New(t)
	d.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "kiln" && password == "hunter2" {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	address := strings.Replace(d.URL, "http://", "http://kiln:hunter2@", 1)
	c := client(t, address)
	if _, err := finish(t, c, "r1", function(t, "trainer", "demo")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"hunter2"}, c.Secrets()); diff != "" {
		t.Error(diff)
	}
	_, err := client(t, strings.Replace(address, "127.0.0.1", "127.0.0.1:1/x#", 1)).Deploy(t.Context(), "r1", function(t, "trainer", "demo"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error %v shows the password", err)
	}
}

func TestAddressesThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "nuclio:8070", "ftp://user:hunter2@host", "http://", "://hunter2", "http://a b"} {
		if _, err := dashboard.New(dashboard.Config{URL: address}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q) = %v", address, err)
		}
	}
}
