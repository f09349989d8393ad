package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

// Harness is an engine under test and its surroundings.
type Harness struct {
	// Engine is used by one test only.
	Engine builder.Engine
	// Registry is where images go.
	Registry *Registry
	// Base has a /bin/sh and the usual tools.
	Base builder.Image
	// Leftovers returns what the engine has not cleaned up, in words. nil: there is
	// nothing to look at.
	Leftovers func() []string
	// Scripted says that the engine is a Fake: it plays what the plans of the suite
	// would do (see Play), so that nothing is asked about the inside of images.
	Scripted bool
}

// Run runs the conformance suite: what the comment of builder.Engine promises.
// newHarness is called once for every test of the suite.
func Run(t *testing.T, newHarness func(*testing.T) Harness) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Harness){
		"pushes an image whose digest it returns":                testPushes,
		"puts nothing of its own into an image from scratch":     testScratch,
		"writes whole lines of the log in order":                 testLogs,
		"survives a log that cannot be written":                  testBrokenLog,
		"names the command that failed and its exit code":        testCommandFails,
		"gives commands context, arguments and secrets":          testInputs,
		"keeps secrets and context out of the image":             testNothingLeaks,
		"stops and cleans up when canceled":                      testCancel,
		"is interrupted by a shutdown":                           testShutdown,
		"ends at the deadline of the context":                    testDeadline,
		"ends at the limit of the plan":                          testLimit,
		"is canceled before it starts":                           testCanceledBefore,
		"never runs an attempt twice at a time":                  testSameAttempt,
		"runs an attempt again after it ended":                   testAgain,
		"keeps concurrent builds apart":                          testConcurrent,
		"reports a registry that refuses the push":               testPushDenied,
		"reports a registry that is out of order as unavailable": testRegistryDown,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			test(t, h)
			if h.Leftovers != nil {
				if left := h.Leftovers(); len(left) > 0 {
					t.Errorf("left behind: %s", strings.Join(left, ", "))
				}
			}
		})
	}
}

func (h Harness) plan(t *testing.T, instructions ...string) builder.Plan {
	t.Helper()
	return NewPlan(h.Base, h.Registry.Host+"/team/image", t.Name(), instructions...)
}

// build runs the plan and returns what it logged.
func (h Harness) build(ctx context.Context, plan builder.Plan) (result builder.Result, logs string, err error) {
	var out buffer
	result, err = h.Engine.Run(ctx, plan, &out)
	return result, out.String(), err
}

// buffer is a writer for a test that reads while an engine writes. It refuses what
// is no whole line.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
	grew chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	if b.grew != nil {
		close(b.grew)
		b.grew = nil
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await returns once the log holds text.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		b.mu.Lock()
		found := strings.Contains(b.text.String(), text)
		if b.grew == nil {
			b.grew = make(chan struct{})
		}
		grew := b.grew
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-grew:
		case <-late:
			t.Fatalf("the log never said %q:\n%s", text, b.String())
		}
	}
}

func fetch(t *testing.T, ref string) v1.Image {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatalf("fetch %s: %v", ref, err)
	}
	return img
}

func wantKind(t *testing.T, err error, kind builder.Kind, logs string) {
	t.Helper()
	if _, ok := errors.AsType[*builder.Error](err); !ok || builder.KindOf(err) != kind {
		t.Fatalf("got error %v (kind %s), want kind %s; log:\n%s", err, builder.KindOf(err), kind, logs)
	}
}

func testPushes(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "RUN echo content >/made")
	result, logs, err := h.build(t.Context(), plan)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs)
	}
	digest, err := fetch(t, plan.Destination).Digest()
	if err != nil || digest.String() != result.Digest {
		t.Errorf("the registry has %s (%v), Run returned %s", digest, err, result.Digest)
	}
	if result.Duration <= 0 {
		t.Errorf("duration is %s", result.Duration)
	}
	if !h.Scripted {
		want := map[string]string{"made": "content\n"}
		if diff := cmp.Diff(want, filesOf(t, fetch(t, plan.Destination), 1)); diff != "" {
			t.Errorf("files of the new layers (-want +got):\n%s", diff)
		}
	}
}

func testScratch(t *testing.T, h Harness) {
	t.Helper()
	plan := NewPlan(builder.Image{}, h.Registry.Host+"/team/image", t.Name(), "COPY dir /app/")
	inputs(&plan)
	_, logs, err := h.build(t.Context(), plan)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs)
	}
	if h.Scripted {
		return
	}
	want := map[string]string{"app/run.sh": "#!/bin/sh\necho from script\n"}
	if diff := cmp.Diff(want, filesOf(t, fetch(t, plan.Destination), 0)); diff != "" {
		t.Errorf("files of the image (-want +got):\n%s", diff)
	}
}

func testLogs(t *testing.T, h Harness) {
	t.Helper()
	_, logs, err := h.build(t.Context(), h.plan(t, "RUN for i in $(seq 1 2000); do echo line $i; done; printf unfinished"))
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs)
	}
	next := 1
	for line := range strings.Lines(logs) {
		if line == fmt.Sprintf("line %d\n", next) {
			next++
		}
	}
	if next != 2001 || !strings.HasSuffix(logs, "\n") || !strings.Contains(logs, "\nunfinished\n") {
		t.Errorf("got lines up to %d, want 2000 and whole lines to the end: …%q", next-1, logs[max(0, len(logs)-200):])
	}
}

func testBrokenLog(t *testing.T, h Harness) {
	t.Helper()
	reader, writer := io.Pipe()
	_ = reader.Close()
	if _, err := h.Engine.Run(t.Context(), h.plan(t, "RUN echo x"), writer); err != nil {
		t.Errorf("a log that cannot be written failed the build: %v", err)
	}
}

func testCommandFails(t *testing.T, h Harness) {
	t.Helper()
	_, logs, err := h.build(t.Context(), h.plan(t, "RUN echo fine", "RUN echo last words; exit 7"))
	wantKind(t, err, builder.KindCommandFailed, logs)
	if !strings.Contains(err.Error(), "exit code 7") || !strings.Contains(err.Error(), "echo last words") {
		t.Errorf("error %q must name the command and its exit code", err)
	}
	if !strings.Contains(logs, "last words\n") {
		t.Errorf("log lacks the command's output:\n%s", logs)
	}
}

func inputs(plan *builder.Plan) {
	plan.Context = []builder.File{
		{Name: "requirements.txt", Data: []byte("pandas==2\n"), Mode: 0o644},
		{Name: "dir/run.sh", Data: []byte("#!/bin/sh\necho from script\n"), Mode: 0o755},
	}
	plan.BuildArgs = []builder.Arg{{Name: "PLAIN", Value: "plain value"}, {Name: "TOKEN", Value: "arg-hush-1", Secret: true}, {Name: "UNDECLARED", Value: "undeclared-hush"}}
	plan.Secrets = []builder.Secret{{ID: "PIP_INDEX_URL", Value: "secret-hush-2", Version: "1"}, {ID: "OTHER", Value: "other-hush-3", Version: "1"}}
}

func testInputs(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t,
		"ARG PLAIN", "ARG TOKEN",
		"RUN --mount=type=bind,source=requirements.txt,target=/kiln/requirements.txt cat /kiln/requirements.txt",
		"RUN --mount=type=bind,source=dir,target=/in /in/run.sh",
		`RUN echo "args: $PLAIN ${#TOKEN} [$UNDECLARED]"`,
		`RUN --mount=type=secret,id=PIP_INDEX_URL,env=PIP_INDEX_URL echo "secrets: ${#PIP_INDEX_URL} [$OTHER]"`,
		"RUN --mount=type=secret,id=OTHER cat /run/secrets/OTHER | { read -r x; echo \"file: ${#x}\"; }",
		`RUN echo "after: [$PIP_INDEX_URL]"; test ! -e /run/secrets/OTHER`,
	)
	inputs(&plan)
	_, logs, err := h.build(t.Context(), plan)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs)
	}
	for _, want := range []string{
		"pandas==2\n", "from script\n", "args: plain value 10 []\n", "secrets: 13 []\n", "file: 12\n", "after: []\n",
	} {
		if !strings.Contains(logs, want) {
			t.Errorf("log lacks %q:\n%s", want, logs)
		}
	}
	if strings.Contains(logs, "hush") {
		t.Errorf("log holds a secret that no command printed:\n%s", logs)
	}
}

func testNothingLeaks(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "ARG TOKEN",
		"RUN --mount=type=secret,id=PIP_INDEX_URL,env=PIP_INDEX_URL --mount=type=secret,id=OTHER --mount=type=bind,source=requirements.txt,target=/kiln/requirements.txt echo used >/made")
	inputs(&plan)
	_, logs, err := h.build(t.Context(), plan)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, logs)
	}
	img := fetch(t, plan.Destination)
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(config), string(manifest), logs} {
		if strings.Contains(text, "hush") {
			t.Errorf("a secret is in: %s", text)
		}
	}
	if h.Scripted {
		return
	}
	files := filesOf(t, img, 1)
	for name, content := range files {
		if strings.Contains(content, "hush") || strings.HasPrefix(name, "kaniko") || strings.HasPrefix(name, "kiln") || strings.HasPrefix(name, "run/") {
			t.Errorf("file %s is in the image: %q", name, content)
		}
	}
	if _, ok := files["made"]; !ok {
		t.Errorf("layers hold %v, want made", files)
	}
}

func testAgain(t *testing.T, h Harness) {
	t.Helper()
	plan := h.plan(t, "RUN echo once")
	for range 2 {
		result, logs, err := h.build(t.Context(), plan)
		if err != nil {
			t.Fatalf("Run: %v\n%s", err, logs)
		}
		digest, err := fetch(t, plan.Destination).Digest()
		if err != nil || digest.String() != result.Digest {
			t.Errorf("the registry has %s (%v), Run returned %s", digest, err, result.Digest)
		}
	}
}

func testConcurrent(t *testing.T, h Harness) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			plan := NewPlan(h.Base, h.Registry.Host+"/team/image", fmt.Sprint(t.Name(), i),
				fmt.Sprintf("RUN test ! -e /number && echo I am %d >/number && sleep 0.2 && cat /number", i))
			_, logs, err := h.build(t.Context(), plan)
			if err != nil || !strings.Contains(logs, fmt.Sprintf("\nI am %d\n", i)) {
				t.Errorf("build %d: %v\n%s", i, err, logs)
			}
			for other := range 4 {
				if other != i && strings.Contains(logs, fmt.Sprintf("\nI am %d\n", other)) {
					t.Errorf("build %d has output of build %d:\n%s", i, other, logs)
				}
			}
		})
	}
	wg.Wait()
}

func testPushDenied(t *testing.T, h Harness) {
	t.Helper()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		h.Registry.Fault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.WriteHeader(status)
			return true
		})
		_, logs, err := h.build(t.Context(), h.plan(t, "RUN echo x"))
		wantKind(t, err, builder.KindPushDenied, logs)
	}
}

func testRegistryDown(t *testing.T, h Harness) {
	t.Helper()
	h.Registry.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	_, logs, err := h.build(t.Context(), h.plan(t, "RUN echo x"))
	wantKind(t, err, builder.KindUnavailable, logs)
	h.Registry.Fault(nil)
	if _, logs, err := h.build(t.Context(), h.plan(t, "RUN echo x")); err != nil {
		t.Errorf("after the registry came back: %v\n%s", err, logs)
	}
}
