package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/events"
)

func TestRequestBecomesAnImage(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)

	c := b.completed(t)
	if c.Outcome != events.OutcomeBuilt || c.RequestID != "r1" || c.Attempt != 1 {
		t.Errorf("completed = %+v, want built for r1, attempt 1", c)
	}
	if got := b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest"); got != c.Digest {
		t.Errorf("the user's tag is at %s, want %s", got, c.Digest)
	}
	if got := b.digestOf(t, c.ImageRef); got != c.Digest {
		t.Errorf("image_ref %s is %s, want %s", c.ImageRef, got, c.Digest)
	}
	if got := len(b.stream.of(events.TypeBuildStarted)); got != 1 {
		t.Errorf("got %d build.started, want 1", got)
	}
	if logs := b.logs.all(); !strings.Contains(logs, "building "+b.registry) {
		t.Errorf("log = %q, want the engine's lines", logs)
	}
}

func TestIdenticalRequestIsReusedWithoutRunning(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	other := b.spec("echo hi")
	other["build"].(map[string]any)["image"] = b.registry + "/elsewhere/name:2"
	b.queue.add(b.request("r2", other, nil)).end(t)

	all := b.terminals(t)
	first, second := all[0].Data.(*events.BuildCompleted), all[1].Data.(*events.BuildCompleted)
	if second.Outcome != events.OutcomeReused || second.BuildID != first.BuildID || second.Digest != first.Digest {
		t.Errorf("second = %+v, want the first's build reused", second)
	}
	if got := b.runs.Load(); got != 1 {
		t.Errorf("engine ran %d times, want 1", got)
	}
	if got := b.digestOf(t, b.registry+"/elsewhere/name:2"); got != first.Digest {
		t.Errorf("second target is at %s, want %s", got, first.Digest)
	}
}

func TestRebuildsWhenAskedOrWhenTheImageIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.queue.add(b.request("r2", b.spec("echo hi"), map[string]any{"force_build": true})).end(t)
	second := b.terminals(t)[1].Data.(*events.BuildCompleted)
	if second.Outcome != events.OutcomeBuilt || second.Attempt != 2 {
		t.Errorf("forced = %+v, want built by attempt 2", second)
	}
	ref, err := name.ParseReference(second.ImageRef)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref); err != nil {
		t.Fatal(err)
	}
	b.queue.add(b.request("r3", b.spec("echo hi"), nil)).end(t)
	third := b.terminals(t)[2].Data.(*events.BuildCompleted)
	if third.Outcome != events.OutcomeBuilt || !strings.Contains(third.Reason, "gone") {
		t.Errorf("after deletion = %+v, want built since the image is gone", third)
	}
}

func TestNothingToBuildIsNotNeeded(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", map[string]any{"image": "mlrun/mlrun"}, nil)).end(t)
	if c := b.completed(t); c.Outcome != events.OutcomeNotNeeded || c.Image != "mlrun/mlrun" {
		t.Errorf("completed = %+v, want not_needed with mlrun/mlrun", c)
	}
	if b.runs.Load() != 0 {
		t.Error("the engine ran")
	}
}

func TestSameRequestAgainGivesNoSecondEvent(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.stream.forget = true // long after the duplicate window
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	b.only(t)
}

func TestSameIDForAnotherRequestIsAConflict(t *testing.T) {
	t.Parallel()
	b := setup(t, nil)
	b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
	second := b.request("r1", b.spec("echo other"), nil)
	b.queue.add(second).end(t)
	all := b.terminals(t)
	f, ok := all[1].Data.(*events.BuildFailed)
	if !ok || f.Error.Code != "conflict" || f.RequestID != second.FallbackID {
		t.Errorf("second = %+v, want a conflict told under %s", all[1].Data, second.FallbackID)
	}
}

func TestLostAckIsAnsweredAgainWithoutASecondEvent(t *testing.T) {
	t.Parallel()
	b := setup(t, func(b *bundle) { b.stream.forget = true })
	msg := b.request("r1", b.spec("echo hi"), nil)
	b.queue.mu.Lock()
	m := memMessage{q: b.queue, event: msg, sequence: b.queue.last.Add(1), lostAck: true}.init()
	b.queue.mu.Unlock()
	b.queue.ch <- m
	m.end(t)
	b.only(t)
	if got := b.runs.Load(); got != 1 {
		t.Errorf("engine ran %d times, want 1", got)
	}
}

func TestEveryEffectMaySucceedAndStillReportAnError(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("happened=%v", after), func(t *testing.T) {
			t.Parallel()
			const seed = 7
			dice := rand.New(rand.NewPCG(seed, seed))
			var mu sync.Mutex
			fails := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return dice.IntN(3) == 0
			}
			b := setup(t, func(b *bundle) {
				b.cfg.MaxAttempts = 100
				b.ledger.fail = func(string, []byte) (error, bool) {
					if fails() {
						return errors.New("ledger timeout"), after
					}
					return nil, false
				}
				b.stream.fail = func(events.Event) (error, bool) {
					if fails() {
						return errors.New("publish timeout"), after
					}
					return nil, false
				}
			})
			b.queue.add(b.request("r1", b.spec("echo hi"), nil)).end(t)
			if c := b.completed(t); c.Digest != b.digestOf(t, b.registry+"/mlrun/func-demo-trainer:latest") {
				t.Errorf("tag is not at %s", c.Digest)
			}
		})
	}
}

func TestBadInputEndsInOneFailureThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	type want struct {
		Code  string
		Paths []string
		Text  string
	}
	for name, tc := range map[string]struct {
		body func(b *bundle) []byte
		want want
	}{
		"not JSON": {func(*bundle) []byte { return []byte("hello") }, want{Code: "invalid_request"}},
		"three violations at once": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"job","metadata":{"name":"x"},"spec":{"build":{"commands":"ls","extra":7}}},"force_build":"maybe"}`)
		}, want{Code: "invalid_request", Paths: []string{"/force_build", "/function/spec/build/commands", "/function/spec/build/extra"}}},
		"unknown top-level key": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"job","metadata":{"name":"x"},"spec":{}},"forse_build":true}`)
		}, want{Code: "invalid_request", Text: "forse_build"}},
		"unsupported kind": {func(*bundle) []byte {
			return []byte(`{"function":{"kind":"toaster","metadata":{"name":"x"},"spec":{}}}`)
		}, want{Code: "invalid_request", Text: "toaster"}},
		"base is no reference": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "UPPER CASE\nRUN x", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "base_image"}},
		"image is no reference": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "image": "bad image", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "build.image"}},
		"source of MLRun's own": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "source": "store://x/y"}}, nil).Data
		}, want{Code: "invalid_request", Text: "spec.build.source"}},
		"source that is on no worker": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": "a", "source": "./code.zip", "commands": []string{"ls"}}}, nil).Data
		}, want{Code: "invalid_request", Text: "spec.build.source"}},
		"NUL in a command": {func(b *bundle) []byte { return b.request("", b.spec("echo \x00"), nil).Data }, want{Code: "invalid_request"}},
		"base does not exist": {func(b *bundle) []byte {
			return b.request("", map[string]any{"build": map[string]any{"base_image": b.registry + "/nope:1", "commands": []string{"ls"}, "with_mlrun": false}}, nil).Data
		}, want{Code: "base_not_found", Text: "nope"}},
		"2 MiB": {func(b *bundle) []byte {
			return b.request("", b.spec(strings.Repeat("x", 2<<20)), nil).Data
		}, want{Code: "invalid_request", Text: "1 MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, nil)
			b.queue.add(bare("", tc.body(b))).end(t)
			f := b.failed(t)
			got := want{Code: f.Error.Code, Text: tc.want.Text}
			for _, v := range f.Error.Violations {
				if len(tc.want.Paths) > 0 {
					got.Paths = append(got.Paths, v.Path)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("failure (-want +got):\n%s\n%+v", diff, f.Error)
			}
			whole, err := json.Marshal(f.Error)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(whole), tc.want.Text) {
				t.Errorf("error %s does not name %q", whole, tc.want.Text)
			}
			if b.runs.Load() != 0 {
				t.Error("the engine ran")
			}
		})
	}
}
