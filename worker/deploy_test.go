package worker

import (
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder/nuclio/dashboard"
	"kiln/builder/nuclio/nucliotest"
	"kiln/events"
)

// nuclioBundle is a worker beside a Nuclio dashboard.
func nuclioBundle(t *testing.T, change func(*bundle)) (*bundle, *nucliotest.Dashboard) {
	t.Helper()
	d := nucliotest.New(t)
	b := setup(t, func(b *bundle) {
		client, err := dashboard.New(dashboard.Config{URL: d.URL, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		b.nuclio = client
		b.secrets = storeOf{"GIT_TOKEN": "project-token-1", "OTHER": "project-other-1"}
		if change != nil {
			change(b)
		}
	})
	return b, d
}

// nuclioRequest asks for a function that Nuclio builds.
func (b *bundle) nuclioRequest(top map[string]any) events.Message {
	body := map[string]any{"function": map[string]any{
		"kind": "nuclio", "metadata": map[string]any{"name": "trainer", "project": "demo"},
		"spec": map[string]any{"image": "mlrun/mlrun:1.7.0", "build": map[string]any{
			"requirements": []string{"pandas"}, "source": "git://git.example.com/org/repo.git#main",
		}},
	}}
	maps.Copy(body, top)
	return bare("r1", mustJSON(body))
}

func TestAFunctionOfNuclioIsDeployedThere(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	b.queue.add(b.nuclioRequest(nil)).end(t)
	c := b.completed(t)
	if c.Outcome != events.OutcomeNotNeeded || c.Image != "registry.example.com/processor:latest" || !strings.Contains(c.Reason, "demo-trainer") {
		t.Errorf("completed = %+v, want not_needed with Nuclio's image", c)
	}
	sent, times := d.Sent("demo-trainer")
	build, _ := sent["spec"].(map[string]any)["build"].(map[string]any)
	want := map[string]any{
		"baseImage": "mlrun/mlrun:1.7.0", "noBaseImagesPull": true,
		"commands":      []any{"python -m pip install 'mlrun[complete]==1.7.0' pandas"},
		"codeEntryType": "git", "path": "https://git.example.com/org/repo.git",
		"codeEntryAttributes": map[string]any{"branch": "main", "username": "project-token-1", "password": "x-oauth-basic"},
	}
	if diff := cmp.Diff(want, build); diff != "" || times != 1 {
		t.Errorf("deployed %d times (-want +got):\n%s", times, diff)
	}
	if b.runs.Load() != 0 {
		t.Error("the engine ran")
	}
	if _, naks := b.queue.counts(); len(naks) == 0 {
		t.Error("the request held its slot while Nuclio was at work")
	}
}

func TestWithoutADashboardTheFunctionIsLeftToNuclio(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.nuclioRequest(nil)).end(t)
	c := b.completed(t)
	if c.Outcome != events.OutcomeNotNeeded || c.Image != "mlrun/mlrun:1.7.0" || !strings.Contains(c.Reason, "Nuclio builds the images of kind nuclio") {
		t.Errorf("completed = %+v, want not_needed that says who builds", c)
	}
}

func TestADuplicateDeploysOnce(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	b.stream.forget = true
	first, second := b.queue.add(b.nuclioRequest(nil)), b.queue.add(b.nuclioRequest(nil))
	first.end(t)
	second.end(t)
	b.queue.add(b.nuclioRequest(nil)).end(t)
	if _, times := d.Sent("demo-trainer"); times != 1 {
		t.Errorf("deployed %d times for one request", times)
	}
	for _, e := range b.terminals(t) {
		if e.ID != b.terminals(t)[0].ID {
			t.Errorf("a second event %s", e.ID)
		}
	}
}

func TestADashboardThatIsAwayIsTriedAgain(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	var calls atomic.Int32
	d.Fault(func(w http.ResponseWriter, _ *http.Request) bool {
		if calls.Add(1) > 2 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	b.queue.add(b.nuclioRequest(nil)).end(t)
	if c := b.completed(t); c.Image != "registry.example.com/processor:latest" {
		t.Errorf("completed = %+v", c)
	}
}

func TestADashboardThatStaysAwayEndsInAFailure(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	d.Fault(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	b.queue.add(b.nuclioRequest(nil)).end(t)
	if f := b.failed(t); f.Error.Code != "unavailable" || !f.Error.Retryable || !strings.Contains(f.Error.Message, "502") {
		t.Errorf("failed = %+v, want unavailable", f.Error)
	}
}

func TestNuclioErrorsAreTheRequestsAndShowNoSecret(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	d.Outcome(nucliotest.Outcome{
		States: []string{"building", "error"}, Message: "git clone https://project-token-1@git.example.com failed",
		Logs: []map[string]any{
			{"level": "info", "message": "cloning with project-token-1"},
			{"level": "error", "message": "it failed", "err": "token builder-env-token"},
		},
	})
	b.queue.add(b.nuclioRequest(map[string]any{"builder_env": map[string]string{"API_TOKEN": "builder-env-token"}})).end(t)
	f := b.failed(t)
	if f.Error.Code != "command_failed" || !strings.Contains(f.Error.Message, "git clone") {
		t.Errorf("failed = %+v, want command_failed with Nuclio's message", f.Error)
	}
	if diff := cmp.Diff([]string{"(info) cloning with ***", "(error) it failed", "token ***"}, f.LogTail); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if all := string(mustJSON(f)); strings.Contains(all, "project-token-1") || strings.Contains(all, "builder-env-token") {
		t.Errorf("the event shows a secret: %s", all)
	}
}

func TestASlowDeploymentEndsAtTheTimeout(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	d.Outcome(nucliotest.Outcome{States: []string{"building"}})
	b.queue.add(b.nuclioRequest(map[string]any{"options": map[string]any{"timeout": "300ms"}})).end(t)
	if f := b.failed(t); f.Error.Code != "timeout" || !strings.Contains(f.Error.Message, "building") {
		t.Errorf("failed = %+v, want timeout that names the state", f.Error)
	}
}

func TestAnotherWorkerGoesOnWithADeployment(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, nil)
	d.Outcome(nucliotest.Outcome{States: []string{"building"}})
	m := b.queue.add(b.nuclioRequest(nil))
	m.await(t, "nak")
	handled := time.Now()
	b.stop()
	b.worker.Interrupt()
	<-b.done
	d.Ready("demo-trainer")
	b.start(t)
	m.end(t)
	if _, times := d.Sent("demo-trainer"); times != 1 {
		t.Errorf("deployed %d times", times)
	}
	if c := b.completed(t); !c.Timings.Started.Before(handled) {
		t.Errorf("timings = %+v, want the start of the first worker, before %s", c.Timings, handled)
	}
}

func TestBadCredentialsOfAStoreAreRetried(t *testing.T) {
	t.Parallel()
	b, d := nuclioBundle(t, func(b *bundle) { b.secrets = failingStore{} })
	b.queue.add(b.nuclioRequest(nil)).end(t)
	if f := b.failed(t); f.Error.Code != "unavailable" {
		t.Errorf("failed = %+v, want unavailable", f.Error)
	}
	if len(d.Calls()) > 0 {
		t.Error("the function was deployed without its secrets")
	}
}
