// Package nucliotest is a Nuclio dashboard for tests: its HTTP API for functions and
// projects, with a build that takes a few looks at its state.
package nucliotest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Outcome is what becomes of a function that is deployed.
type Outcome struct {
	// States are what is reported, one for each look at the function; the last one stays.
	States []string
	// Message, Image and Logs are reported with the last state.
	Message, Image string
	Logs           []map[string]any
}

// Dashboard is a Nuclio dashboard in this process. Safe for concurrent use.
type Dashboard struct {
	// URL is its address.
	URL string

	faults atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu        sync.Mutex
	outcome   Outcome
	functions map[string]*deployed
	projects  map[string]bool
	calls     []string
}

// deployed is a function that was deployed. Body is what was sent last.
type deployed struct {
	body  map[string]any
	looks int
	times int
	Outcome
}

// New starts a dashboard that ends with the test. A function is ready at the third look.
func New(tb testing.TB) *Dashboard {
	tb.Helper()
	d := &Dashboard{
		functions: map[string]*deployed{}, projects: map[string]bool{},
		outcome: Outcome{States: []string{"waitingForBuild", "building", "ready"}, Image: "registry.example.com/processor:latest"},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/functions/{name}", d.get)
	mux.HandleFunc("POST /api/functions", d.create)
	mux.HandleFunc("PUT /api/functions/{name}", d.update)
	mux.HandleFunc("GET /api/projects/{name}", d.getProject)
	mux.HandleFunc("POST /api/projects", d.createProject)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.note(r)
		if fault := d.faults.Load(); fault != nil && (*fault)(w, r) {
			return
		}
		mux.ServeHTTP(w, r)
	}))
	tb.Cleanup(server.Close)
	d.URL = server.URL
	return d
}

// Fault makes answer stand before the dashboard: it answers itself and returns true,
// or returns false. nil takes it away.
func (d *Dashboard) Fault(answer func(http.ResponseWriter, *http.Request) bool) {
	if answer == nil {
		d.faults.Store(nil)
		return
	}
	d.faults.Store(&answer)
}

// Outcome sets what becomes of functions that are deployed from now on.
func (d *Dashboard) Outcome(o Outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.outcome = o
}

// Ready makes a function that was deployed ready.
func (d *Dashboard) Ready(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.functions[name]; f != nil {
		f.looks, f.Outcome = 0, Outcome{States: []string{"ready"}, Image: "registry.example.com/processor:latest"}
	}
}

// Sent returns the configuration that a function was deployed with last, and how often
// it was deployed.
func (d *Dashboard) Sent(name string) (config map[string]any, times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.functions[name]; f != nil {
		return f.body, f.times
	}
	return nil, 0
}

// Calls returns every request as "METHOD path", in order.
func (d *Dashboard) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

func (d *Dashboard) note(r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, r.Method+" "+r.URL.Path)
}

func (d *Dashboard) get(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.functions[r.PathValue("name")]
	if f == nil {
		fail(w, http.StatusNotFound, "Function not found")
		return
	}
	last := len(f.States) - 1
	status := map[string]any{"state": f.States[min(f.looks, last)]}
	spec, _ := f.body["spec"].(map[string]any)
	if f.looks >= last {
		status["message"], status["logs"] = f.Message, f.Logs
		status["containerImage"] = f.Image
	}
	f.looks++
	answer(w, http.StatusOK, map[string]any{"metadata": f.body["metadata"], "spec": spec, "status": status})
}

func (d *Dashboard) create(w http.ResponseWriter, r *http.Request) { d.deploy(w, r, "") }
func (d *Dashboard) update(w http.ResponseWriter, r *http.Request) {
	d.deploy(w, r, r.PathValue("name"))
}

// deploy is POST without a name and PUT with one.
func (d *Dashboard) deploy(w http.ResponseWriter, r *http.Request, update string) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Header.Get("Content-Type") != "application/json" {
		fail(w, http.StatusBadRequest, "Failed to parse JSON body")
		return
	}
	metadata, _ := body["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	labels, _ := metadata["labels"].(map[string]any)
	project := r.Header.Get("X-Nuclio-Project-Name")
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.functions[name]
	switch {
	case name == "":
		fail(w, http.StatusBadRequest, "Function name must be provided in metadata")
		return
	case !d.projects[project] || labels["nuclio.io/project-name"] != project:
		fail(w, http.StatusBadRequest, "Project does not exist")
		return
	case update == "" && f != nil:
		fail(w, http.StatusConflict, "Cannot create two functions with the same name")
		return
	case update != "" && (update != name || f == nil):
		fail(w, http.StatusNotFound, "Function not found")
		return
	case f == nil:
		f = &deployed{}
		d.functions[name] = f
	}
	f.body, f.looks, f.Outcome = body, 0, d.outcome
	f.times++
	w.WriteHeader(http.StatusAccepted)
}

func (d *Dashboard) getProject(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.projects[r.PathValue("name")] {
		fail(w, http.StatusNotFound, "Project not found")
		return
	}
	answer(w, http.StatusOK, map[string]any{"metadata": map[string]any{"name": r.PathValue("name")}})
}

func (d *Dashboard) createProject(w http.ResponseWriter, r *http.Request) {
	var body struct{ Metadata struct{ Name string } }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.Metadata.Name == "" {
		fail(w, http.StatusBadRequest, "Project name must be provided in metadata")
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.projects[body.Metadata.Name] = true
	answer(w, http.StatusCreated, body)
}

func answer(w http.ResponseWriter, code int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		code, raw = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(raw)
}

func fail(w http.ResponseWriter, code int, text string) {
	answer(w, code, map[string]any{"error": text, "errorStackTrace": "at somewhere"})
}
