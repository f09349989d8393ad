package sandbox

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kiln/builder"
	"kiln/builder/enginetest"
)

// TestRecord provokes failures with the real executor and records what it writes as
// the test data of builder/kaniko. It runs when KILN_RECORD names a folder.
func TestRecord(t *testing.T) { //nolint:paralleltest // one engine, whose output is recorded
	target := os.Getenv("KILN_RECORD")
	if target == "" {
		t.Skip("records test data only when KILN_RECORD names a folder")
	}
	for name, r := range recordings() { //nolint:paralleltest // see above
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Root = RootTmpfs
			e := engine(t, cfg)
			reg := enginetest.NewRegistry(t)
			base := enginetest.PushBase(t, reg.Host+"/base")
			plan := enginetest.NewPlan(base, reg.Host+"/team/image", name, r.instructions...)
			if r.change != nil {
				r.change(&plan)
			}
			e.record = &recorder{}
			if r.fault != nil {
				reg.Fault(r.fault)
			}
			if r.closed {
				plan.Dockerfile = strings.Replace(plan.Dockerfile, reg.Host, "127.0.0.1:1", 1)
			}
			_, err := e.Run(t.Context(), plan, io.Discard)
			t.Log(err)
			text := strings.ReplaceAll(e.record.raw.String(), reg.Host, "127.0.0.1:5000")
			text = regexp.MustCompile(`"time":"[^"]*"`).ReplaceAllString(text, `"time":"2026-01-02T03:04:05Z"`)
			text = withoutRepetition(text)
			text = fmt.Sprintf("exit %d\n%s", e.record.code, text)
			if err := os.WriteFile(filepath.Join(target, name+".log"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// withoutRepetition leaves three of any number of equal lines in a row.
func withoutRepetition(text string) string {
	var kept strings.Builder
	last, times := "", 0
	for line := range strings.Lines(text) {
		if times++; line != last {
			last, times = line, 1
		}
		if times <= 3 {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

type recording struct {
	instructions []string
	change       func(*builder.Plan)
	fault        func(http.ResponseWriter, *http.Request) bool
	closed       bool
}

// status answers matching requests with a status.
func status(code int, method, part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if (method != "" && r.Method != method) || !strings.Contains(r.URL.Path, part) {
			return false
		}
		w.WriteHeader(code)
		return true
	}
}

// refused answers matching requests like a registry that speaks the OCI error format.
func refused(code int, name, method, part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if (method != "" && r.Method != method) || !strings.Contains(r.URL.Path, part) {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"requested access to the resource is denied"}]}`, name)
		return true
	}
}

func recordings() map[string]recording {
	touch := []string{"RUN touch /new"}
	requirements := "RUN --mount=type=bind,source=requirements.txt,target=/kiln/requirements.txt python -m pip install -r /kiln/requirements.txt"
	withFile := func(p *builder.Plan) {
		p.Context = []builder.File{{Name: "requirements.txt", Data: []byte("nope==1\n"), Mode: 0o644}}
	}
	return map[string]recording{
		"success":        {instructions: []string{"ARG A", "ENV B=c", "WORKDIR /work", "RUN echo one; echo two >&2", "COPY requirements.txt /x", "USER user", "RUN /bin/sh -e /dev/fd/3 3<<'KILN_EOF'\nid\necho second\nKILN_EOF"}, change: withFile},
		"command-exit-7": {instructions: []string{"RUN echo fine", "RUN --mount=type=bind,source=requirements.txt,target=/in echo before; exit 7"}, change: withFile},
		"command-exit-1": {instructions: []string{"RUN false"}},
		"command-exit-2": {instructions: []string{"RUN exit 2"}},
		"command-killed": {instructions: []string{"RUN kill -9 $$"}},
		"command-no-shell": {instructions: touch, change: func(p *builder.Plan) {
			p.Dockerfile = "FROM scratch\nRUN touch /new\n"
			p.Base = builder.Image{Ref: builder.Scratch}
		}},
		"command-no-such-user": {instructions: []string{"USER nobody-here", "RUN true"}},
		"command-fakes-push": {instructions: []string{`RUN echo '{"level":"info","msg":"Pushing image to 127.0.0.1:5000/team/image:x","time":"2026-01-02T03:04:05Z"}' >&2; ` +
			`echo 'error pushing image: failed to push to destination x: PUT http://x: unexpected status code 503 Service Unavailable' >&2; exit 1`}},
		"command-fakes-push-after": {instructions: []string{`RUN (while :; do echo 'error pushing image: failed to push to destination x: unexpected status code 503 Service Unavailable' >&2; done) & sleep 0.1; exit 1`}},
		"requirements":             {instructions: []string{"RUN printf '#!/bin/sh\\necho ERROR: No matching distribution found for nope==1 >&2; exit 1\\n' >/bin/python; chmod +x /bin/python", requirements}, change: withFile},
		"requirements-no-python":   {instructions: []string{requirements}, change: withFile},
		"base-no-manifest": {instructions: touch, change: func(p *builder.Plan) {
			p.Dockerfile = strings.Replace(p.Dockerfile, "@sha256:", "@sha256:0000", 1)
			p.Dockerfile = regexp.MustCompile(`sha256:0000(.{60})....`).ReplaceAllString(p.Dockerfile, "sha256:0000$1")
		}},
		"base-no-repository":    {instructions: touch, change: func(p *builder.Plan) { p.Dockerfile = strings.Replace(p.Dockerfile, "/base@", "/nope@", 1) }},
		"base-401":              {instructions: touch, fault: status(401, "", "/base/")},
		"base-403-denied":       {instructions: touch, fault: refused(403, "DENIED", "", "/base/")},
		"base-401-unauthorized": {instructions: touch, fault: refused(401, "UNAUTHORIZED", "", "/base/")},
		"base-500":              {instructions: touch, fault: status(500, "", "/base/")},
		"base-429":              {instructions: touch, fault: refused(429, "TOOMANYREQUESTS", "", "/base/")},
		"base-refused":          {instructions: touch, closed: true},
		"base-no-host":          {instructions: touch, change: func(p *builder.Plan) { p.Dockerfile = "FROM registry.invalid/base:1\nRUN touch /new\n" }},
		"layer-404":             {instructions: touch, fault: layerFault(404)},
		"layer-503":             {instructions: touch, fault: layerFault(503)},
		"push-check-401":        {instructions: touch, fault: refused(401, "UNAUTHORIZED", "POST", "/team/image/blobs/uploads")},
		"push-check-403":        {instructions: touch, fault: refused(403, "DENIED", "POST", "/team/image/blobs/uploads")},
		"push-check-403-bare":   {instructions: touch, fault: status(403, "POST", "/team/image/blobs/uploads")},
		"push-check-500":        {instructions: touch, fault: status(500, "POST", "/team/image/blobs/uploads")},
		"push-403":              {instructions: touch, fault: refused(403, "DENIED", "PUT", "/team/image/manifests")},
		"push-401":              {instructions: touch, fault: status(401, "PUT", "/team/image/manifests")},
		"push-500":              {instructions: touch, fault: status(500, "PUT", "/team/image/manifests")},
		"push-cut": {instructions: touch, fault: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/team/image/manifests") {
				return false
			}
			panic(http.ErrAbortHandler)
		}},
		"push-denied-by-name": {instructions: touch, fault: refused(404, "NAME_UNKNOWN", "POST", "/team/image/blobs/uploads")},
		"command-disk-full":   {instructions: []string{"RUN dd if=/dev/zero of=/big bs=1M"}, change: func(p *builder.Plan) { p.Limits.Disk = 20 * mib }},
		"unpack-disk-full":    {instructions: touch, change: func(p *builder.Plan) { p.Limits.Disk = mib }},
		"snapshot-disk-full":  {instructions: []string{"RUN dd if=/dev/urandom of=/big bs=1M count=12"}, change: func(p *builder.Plan) { p.Limits.Disk = 20 * mib }},
		"out-of-memory":       {instructions: []string{`RUN x=$(yes | head -c 300000000); echo "${#x}"`}, change: func(p *builder.Plan) { p.Limits.Memory = 64 * mib; p.Limits.Disk = 20 * mib }},
		"time-over":           {instructions: []string{"RUN echo waiting; sleep 60"}, change: func(p *builder.Plan) { p.Limits.Timeout = time.Second }},
		"bad-instruction":     {instructions: []string{"RUNN x"}},
		"bad-from":            {instructions: []string{"RUN true", "FROM UPPER CASE", "RUN true"}},
		"bad-copy":            {instructions: []string{"COPY missing /x"}},
		"bad-copy-from":       {instructions: []string{"COPY --from=nothere /x /y"}},
		"bad-user":            {instructions: []string{"USER ${"}},
		"bad-add":             {instructions: []string{"ADD http://127.0.0.1:1/x /x"}},
		"secret-missing":      {instructions: []string{"RUN --mount=type=secret,id=nope,required=true true"}},
		"bad-flag":            {instructions: touch, change: func(p *builder.Plan) { p.Executor.Flags = []string{"--no-such-flag"} }},
		"bad-snapshot-mode":   {instructions: touch, change: func(p *builder.Plan) { p.Executor.Flags = []string{"--snapshot-mode=nope"} }},
		"bad-platform":        {instructions: touch, change: func(p *builder.Plan) { p.Platform = "linux/s390x" }},
	}
}

// layerFault answers requests for layers of the base, not those for its config.
func layerFault(code int) func(http.ResponseWriter, *http.Request) bool {
	seen := 0
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/base/blobs/") {
			return false
		}
		seen++
		if seen < 2 {
			return false
		}
		w.WriteHeader(code)
		return true
	}
}
