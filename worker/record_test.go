package worker

import (
	"strings"
	"testing"

	"kiln/events"
)

// TestRecordsFromBeforeVersionsAreRead: these are records as they were written before
// there were versions.
func TestRecordsFromBeforeVersionsAreRead(t *testing.T) {
	t.Parallel()
	l := memLedger{newMemBucket()}
	for key, raw := range map[string]string{
		buildKey("b1"):   `{"status":"completed","attempt":2,"request_id":"r1","image_ref":"reg/x@sha256:1","digest":"sha256:1","started":"2026-01-02T03:04:05Z","finished":"2026-01-02T03:05:05Z","build_ms":60000}`,
		requestKey("r1"): `{"request_id":"r1","content":"c","tries":1,"causes":["x"],"started":"2026-01-02T03:04:05Z","terminal":{"type":"build.completed","id":"r1.build.completed","source":"/kiln/worker/w","time":"2026-01-02T03:05:05Z","data":{"request_id":"r1","function":{"project":"p","name":"n","tag":"t"},"outcome":"built","reason":"x","image":"i","digest":"sha256:1"}}}`,
	} {
		if _, err := l.Put(t.Context(), key, []byte(raw), 0); err != nil {
			t.Fatal(err)
		}
	}
	build, err := load[buildRecord](t.Context(), l, buildKey("b1"))
	if err != nil || !build.value.finished() || build.value.Digest != "sha256:1" || build.value.Attempt != 2 || build.value.BuildMS != 60000 {
		t.Errorf("build = %+v (%v)", build.value, err)
	}
	request, err := load[requestRecord](t.Context(), l, requestKey("r1"))
	if err != nil || request.value.Tries != 1 || request.value.Terminal == nil {
		t.Fatalf("request = %+v (%v)", request.value, err)
	}
	e, err := request.value.Terminal.event()
	if c, ok := e.Data.(*events.BuildCompleted); err != nil || !ok || c.Digest != "sha256:1" {
		t.Errorf("terminal event = %+v (%v)", e, err)
	}
	if err := store(t.Context(), l, &build, build.value); err != nil {
		t.Fatal(err)
	}
	if raw, _, err := l.Get(t.Context(), buildKey("b1")); err != nil || !strings.HasPrefix(string(raw), `{"v":1,"status":"completed"`) {
		t.Errorf("written again as %s (%v), want version 1", raw, err)
	}
}

func TestARecordOfALaterVersionIsNotUnderstood(t *testing.T) {
	t.Parallel()
	l := memLedger{newMemBucket()}
	if _, err := l.Put(t.Context(), buildKey("b1"), []byte(`{"v":2,"status":"completed"}`), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := load[buildRecord](t.Context(), l, buildKey("b1")); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("error = %v, want one that names version 2", err)
	}
}
