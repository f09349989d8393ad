//go:build e2e

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/nats-io/nats.go"
)

func TestPlainMessageBecomesAPullableImage(t *testing.T) {
	k := up(t, t.TempDir())
	pushBase(t, k.Registry+"/base:1", 0)
	nc, err := nats.Connect(k.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync("build.*")
	if err != nil {
		t.Fatal(err)
	}
	// What a person types: no envelope, no header, no kiln code.
	if err := nc.Publish("build.requested", functionJSON(t, "plain", k.Registry+"/base:1", "echo made by hand > /made")); err != nil {
		t.Fatal(err)
	}
	var subjects []string
	for !strings.Contains(strings.Join(subjects, " "), "build.completed") {
		msg, err := sub.NextMsg(time.Minute)
		if err != nil {
			t.Fatalf("after %v: %v\n%s", subjects, err, k.out)
		}
		subjects = append(subjects, msg.Subject)
	}
	if got := strings.Join(subjects, " "); got != "build.requested build.started build.completed" {
		t.Errorf("subjects = %s", got)
	}
	all := terminals(t, k.js(t), "seq:BUILD:1", time.Second)
	if len(all) != 1 || all[0].SpecVersion != "1.0" {
		t.Fatalf("terminal events = %+v, want one CloudEvent", all)
	}
	image, _ := all[0].field(t, "image").(string)
	digest, _ := all[0].field(t, "digest").(string)
	pulled, err := crane.Pull(image)
	if err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	if got, err := pulled.Digest(); err != nil || got.String() != digest {
		t.Errorf("pulled digest %v (%v), want %s", got, err, digest)
	}
	files := mutate.Extract(pulled)
	defer files.Close()
	var tarball bytes.Buffer
	if _, err := tarball.ReadFrom(files); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(tarball.Bytes(), []byte("made by hand")) {
		t.Error("the command's file is not in the image")
	}
	if bytes.Contains(tarball.Bytes(), []byte("kaniko/executor")) {
		t.Error("the executor is in the image")
	}
	if left := k.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestKilledInMidBuildConvergesAfterARestart(t *testing.T) {
	dir := t.TempDir()
	k := up(t, dir, "KILN_WORKER_LEASE=6s")
	pushBase(t, k.Registry+"/base:1", 0)
	js := k.js(t)
	base := k.Registry + "/base:1"
	if _, err := js.Publish(t.Context(), "build.requested", functionJSON(t, "killed", base, "sleep 3; echo done > /done"), jetstreamID("killed-1")...); err != nil {
		t.Fatal(err)
	}
	await(t, time.Minute, "the build's command to run", func() bool {
		for _, w := range emitted(t, js) {
			if w.subject == "build.started" {
				return true
			}
		}
		return false
	})
	await(t, time.Minute, "the executor", func() bool { return len(k.leftovers(t)) > 0 })
	k.kill(t)

	// The registry's address is part of the request, so it must be the same again.
	k = upAt(t, dir, k.Registry, "KILN_WORKER_LEASE=6s")
	all := terminals(t, k.js(t), "killed-1", 90*time.Second)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %+v, want one build.completed", all)
	}
	if attempt := all[0].field(t, "attempt"); attempt != 2.0 {
		t.Errorf("attempt = %v, want 2", attempt)
	}
	if left := k.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBadBuildsEndInOneEventEach(t *testing.T) {
	k := up(t, t.TempDir(), "KILN_SANDBOX_MEMORY=256MiB", "KILN_SANDBOX_DISK=300MiB", "KILN_WORKER_MAX_ATTEMPTS=4")
	base := k.Registry + "/base:1"
	pushBase(t, base, 0)
	js := k.js(t)
	request := func(id, baseImage string, options map[string]any, commands ...string) []byte {
		raw, err := json.Marshal(map[string]any{
			"function": json.RawMessage(functionJSON(t, id, baseImage, commands...)), "options": options,
		})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	cases := map[string]struct {
		body []byte
		code string // "" is completed
		text string
	}{
		"exit-7":        {request("exit-7", base, nil, "echo the last words; exit 7"), "command_failed", "exit 7"},
		"no-such-base":  {request("no-such-base", k.Registry+"/nope:1", nil, "true"), "base_not_found", "nope"},
		"too-slow":      {request("too-slow", base, map[string]any{"timeout": "3s"}, "sleep 60"), "timeout", "3s"},
		"too-greedy":    {request("too-greedy", base, nil, `awk 'BEGIN { s = "xxxxxxxxxxxxxxxx"; while (1) s = s s }'`), "out_of_memory", ""},
		"too-big":       {request("too-big", base, nil, "dd if=/dev/zero of=/big bs=1M count=900"), "disk_full", ""},
		"registry-gone": {request("registry-gone", "127.0.0.1:1/base:1", nil, "true"), "unavailable", ""},
		"not-json":      {[]byte("make me an image"), "invalid_request", ""},
		"two-mebibytes": {request("two-mebibytes", base, nil, strings.Repeat("x", 2<<20)), "invalid_request", "1 MiB"},
		"quotes":        {request("quotes", base, nil, `echo "it's $(echo quoted) \ `+"`echo ticks`"+`" > /q`), "", ""},
		"many-lines":    {request("many-lines", base, nil, "x=1\nfor i in 1 2 3; do\n  echo \"$i $x\"\ndone > /lines\ncat <<'EOF'\nRUN evil\nEOF"), "", ""},
		"hundred-kB":    {request("hundred-kB", base, nil, "echo "+strings.Repeat("x", 100_000)+" > /long"), "", ""},
		"unicode":       {request("unicode", base, nil, "echo 'grüße 🔥 \u202e' > /unicode"), "", ""},
		"no-such-package": {
			bytes.Replace(request("no-such-package", base, nil), []byte(`"commands":null`), []byte(`"requirements":["nosuch==9"]`), 1),
			"requirements_failed", "nosuch==9",
		},
		"line-injection": {request("line-injection", base, nil, "true\nUSER nobody\nKILN_EOF\nRUN touch /injected"), "command_failed", ""},
	}
	for id, tc := range cases {
		if _, err := js.Publish(t.Context(), "build.requested", tc.body, jetstreamID(id)...); err != nil {
			t.Fatalf("publish %s: %v", id, err)
		}
	}
	// The same message once more: the stream drops it.
	if _, err := js.Publish(t.Context(), "build.requested", cases["exit-7"].body, jetstreamID("exit-7")...); err != nil {
		t.Fatal(err)
	}
	for id, tc := range cases {
		t.Run(id, func(t *testing.T) {
			// Out of memory, it is tried once more with twice as much.
			all := terminals(t, js, id, 3*time.Minute)
			if len(all) != 1 {
				t.Fatalf("got %d terminal events, want 1: %s", len(all), all)
			}
			e := all[0]
			if tc.code == "" {
				if e.subject != "build.completed" {
					t.Fatalf("got %s: %s", e.subject, e.Data)
				}
				return
			}
			if got := e.field(t, "error", "code"); got != tc.code {
				t.Fatalf("code = %v, want %s: %s", got, tc.code, e.Data)
			}
			if hint, _ := e.field(t, "error", "hint").(string); hint == "" {
				t.Errorf("no hint: %s", e.Data)
			}
			if !bytes.Contains(e.Data, []byte(tc.text)) {
				t.Errorf("event does not name %q: %s", tc.text, e.Data)
			}
		})
	}
	if e := terminals(t, js, "exit-7", time.Second)[0]; !bytes.Contains(e.Data, []byte("the last words")) {
		t.Errorf("log_tail lacks the command's last words: %s", e.Data)
	}
	await(t, 20*time.Second, "nothing to be left behind", func() bool { return len(k.leftovers(t)) == 0 })
}

func TestCommandLineTour(t *testing.T) {
	k := up(t, t.TempDir())
	pushBase(t, k.Registry+"/base:1", 0)
	file := filepath.Join(t.TempDir(), "function.json")
	if err := os.WriteFile(file, functionJSON(t, "tour", k.Registry+"/base:1", "echo hello from the tour"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, errs, code := k.run(ctx, "build", "-f", file, "-o", "json")
	var first, second struct {
		RequestID string `json:"request_id"`
		BuildID   string `json:"build_id"`
		Outcome   string `json:"outcome"`
	}
	if err := json.Unmarshal([]byte(out), &first); err != nil || code != 0 || first.Outcome != "built" {
		t.Fatalf("build = %d %q %q (%v)", code, out, errs, err)
	}
	if out, errs, code = k.run(ctx, "build", "-f", file, "-o", "json"); code != 0 || json.Unmarshal([]byte(out), &second) != nil || second.Outcome != "reused" {
		t.Fatalf("second build = %d %q %q", code, out, errs)
	}
	for _, id := range []string{first.RequestID, first.BuildID} {
		if out, errs, code = k.run(ctx, "logs", id); code != 0 || !strings.Contains(out, "hello from the tour") {
			t.Errorf("logs %s = %d %q %q", id, code, out, errs)
		}
	}
	if out, errs, code = k.run(ctx, "status", first.RequestID); code != 0 || !strings.Contains(out, "completed") {
		t.Errorf("status = %d %q %q", code, out, errs)
	}
	out, errs, code = k.run(ctx, "build", "-f", file, "--detach")
	if id := strings.TrimSpace(out); code != 0 || id == "" || strings.ContainsAny(id, " \n") {
		t.Errorf("build --detach = %d %q %q", code, out, errs)
	}
	if out, errs, code = k.run(ctx, "build", "-f", file, "--no-follow"); code != 0 || !strings.Contains(out, "reused") {
		t.Errorf("build --no-follow = %d %q %q", code, out, errs)
	}
	if out, errs, code = k.run(ctx, "ls"); code != 0 || strings.Count(out, "tour") < 2 {
		t.Errorf("ls = %d %q %q", code, out, errs)
	}
	if err := os.WriteFile(file, functionJSON(t, "tour", k.Registry+"/base:1", "exit 3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, errs, code = k.run(ctx, "build", "-f", file); code != 1 || !strings.Contains(out+errs, "command_failed") {
		t.Errorf("failing build = %d %q %q", code, out, errs)
	}
}

func TestWorkerJoinsExistingServers(t *testing.T) {
	k := up(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, errs, code := k.run(ctx, "provision"); code != 0 {
		t.Errorf("provision on a provisioned server = %d %q %q", code, out, errs)
	}
	pushBase(t, k.Registry+"/base:1", 0)
	worker := startWorker(t, k)
	js := k.js(t)
	for i := range 4 {
		body := functionJSON(t, fmt.Sprintf("shared-%d", i), k.Registry+"/base:1", fmt.Sprintf("sleep 1; echo %d", i))
		if _, err := js.Publish(t.Context(), "build.requested", body, jetstreamID(fmt.Sprintf("shared-%d", i))...); err != nil {
			t.Fatal(err)
		}
	}
	workers := map[any]bool{}
	for i := range 4 {
		if all := terminals(t, js, fmt.Sprintf("shared-%d", i), time.Minute); len(all) != 1 || all[0].subject != "build.completed" {
			t.Errorf("request %d: %+v", i, all)
		}
	}
	for _, w := range emitted(t, js) {
		if w.subject == "build.started" {
			workers[w.field(t, "worker")] = true
		}
	}
	if len(workers) != 2 {
		t.Errorf("builds ran on %v, want both workers\n%s", workers, worker)
	}
}
