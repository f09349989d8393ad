//go:build e2e

package main

import (
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
)

// refusing is a registry that answers every write with the given status.
func refusing(t *testing.T, status int) string {
	t.Helper()
	images := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			images.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// pushingTo is a request for a function whose image goes to the given registry.
func pushingTo(t *testing.T, name, base, registry string) []byte {
	t.Helper()
	raw, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": name, "project": "e2e"},
		"spec": map[string]any{"build": map[string]any{
			"base_image": base, "commands": []string{"echo " + name + " > /name"}, "with_mlrun": false, "image": registry + "/team/" + name + ":1",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestRegistriesThatRefuseThePush(t *testing.T) {
	k := up(t, t.TempDir(), "KILN_WORKER_MAX_ATTEMPTS=2")
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	js := k.js(t)
	for id, tc := range map[string]struct {
		status int
		code   string
	}{
		"unauthorized": {http.StatusUnauthorized, "push_denied"},
		"forbidden":    {http.StatusForbidden, "push_denied"},
		"broken":       {http.StatusInternalServerError, "unavailable"},
	} {
		if _, err := js.Publish(t.Context(), "build.requested", pushingTo(t, id, base, refusing(t, tc.status)), jetstreamID(id)...); err != nil {
			t.Fatal(err)
		}
		all := terminals(t, js, id, time.Minute)
		if len(all) != 1 || all[0].field(t, "error", "code") != tc.code {
			t.Errorf("%s: %s, want one build.failed with %s", id, all[0].Data, tc.code)
		}
		if hint, _ := all[0].field(t, "error", "hint").(string); hint == "" {
			t.Errorf("%s: no hint", id)
		}
	}
}

func TestRegistryThatIsDownAndComesBack(t *testing.T) {
	k := up(t, t.TempDir())
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	js := k.js(t)
	// An address that nobody answers on, until the registry comes back.
	var config net.ListenConfig
	reserved, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := reserved.Addr().String()
	if err := reserved.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "build.requested", pushingTo(t, "patient", base, address), jetstreamID("patient")...); err != nil {
		t.Fatal(err)
	}
	await(t, time.Minute, "a second attempt", func() bool {
		attempts := 0
		for _, e := range emitted(t, js) {
			if strings.HasSuffix(e.subject, ".started") {
				attempts++
			}
		}
		return attempts >= 2
	})
	listener, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()

	all := terminals(t, js, "patient", time.Minute)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %s, want one build.completed", all[0].Data)
	}
	if attempt, _ := all[0].field(t, "attempt").(float64); attempt < 2 {
		t.Errorf("attempt = %v, want a later one than the first", attempt)
	}
}
