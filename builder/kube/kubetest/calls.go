package kubetest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Calls counts calls of an API server by what RBAC calls them: "get pods/log". Safe for
// concurrent use.
type Calls struct {
	mu     sync.Mutex
	counts map[string]int
}

// Counts returns the number of calls by name.
func (c *Calls) Counts() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// Names returns the names of the calls that were made, sorted.
func (c *Calls) Names() []string { return slices.Sorted(maps.Keys(c.Counts())) }

// count wraps a transport.
func (c *Calls) count(next http.RoundTripper) http.RoundTripper { return counting{c, next} }

type counting struct {
	calls *Calls
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.calls.mu.Lock()
	c.calls.counts[callName(r)]++
	c.calls.mu.Unlock()
	return c.next.RoundTrip(r)
}

// callName reads .../namespaces/NAMESPACE/RESOURCE[/NAME[/SUBRESOURCE]].
func callName(r *http.Request) string {
	_, path, ok := strings.Cut(r.URL.Path, "/namespaces/")
	parts := strings.Split(path, "/")
	if !ok || len(parts) < 2 {
		return r.Method + " " + r.URL.Path
	}
	what, named := parts[1], len(parts) > 2
	if len(parts) > 3 {
		what += "/" + parts[3]
	}
	verb := "list"
	switch r.Method {
	case http.MethodPost:
		verb = "create"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
		if !named {
			verb = "deletecollection"
		}
	default:
		if named {
			verb = "get"
		} else if r.URL.Query().Has("watch") {
			verb = "watch"
		}
	}
	return verb + " " + what
}
