package trigger

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/events"
)

func TestBuildOfARunLeadsBackToIt(t *testing.T) {
	t.Parallel()
	key := events.RunKey("r")
	if got, ok := runOf(buildRequest(key, 42)); got != key || !ok {
		t.Errorf("runOf() = %s, %v", got, ok)
	}
	for _, id := range []string{"", "r", "run.", "run." + key, "run." + key + ".", "run." + key[1:] + ".1", "run." + strings.ToUpper(key) + ".1", "run." + key + ".1x", key + ".1"} {
		if got, ok := runOf(id); ok {
			t.Errorf("runOf(%q) = %q", id, got)
		}
	}
}

// FuzzWaiter holds that whatever somebody publishes as the id of a result leads to no
// other key than that of a run.
func FuzzWaiter(f *testing.F) {
	f.Add("run." + events.RunKey("r") + ".1.build.completed")
	f.Add("run.*.1.build.failed")
	f.Add("r.build.canceled")
	f.Fuzz(func(t *testing.T, id string) {
		key, requestID, ok := waiter(events.Message{Header: map[string][]string{"Nats-Msg-Id": {id}}})
		if !ok {
			return
		}
		if len(key) != 64 || strings.Trim(key, "0123456789abcdef") != "" || !strings.HasPrefix(id, requestID) {
			t.Errorf("waiter(%q) = %q, %q", id, key, requestID)
		}
	})
}

func TestRecordsOfLaterVersionsAreNotRead(t *testing.T) {
	t.Parallel()
	if _, err := decode("k", []byte(`{"v":2}`), 1); err == nil {
		t.Error("it is read")
	}
	if s, err := decode("k", []byte(`{"v":1,"run_id":"r","later":true}`), 7); err != nil || s.RunID != "r" || s.revision != 7 {
		t.Errorf("decode() = %+v, %v", s, err)
	}
}

func TestTheEndComesBackByteForByte(t *testing.T) {
	t.Parallel()
	e := events.Event{
		ID: "r.run.canceled", Source: "/t", Type: events.TypeRunCanceled, Time: time.Now().UTC(),
		Data: &events.RunCanceled{RunID: "r", Reason: "x", Timings: events.RunTimings{Requested: time.Unix(1, 5).UTC(), Finished: time.Unix(2, 7).UTC()}},
	}
	r := record{State: stateRunning, Claim: "c", Owner: "o"}
	if err := r.end(e); err != nil {
		t.Fatal(err)
	}
	got, err := r.terminal()
	if diff := cmp.Diff(e, got); diff != "" || err != nil || r.Claim != "" || r.State != stateEnded {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestLinesOfAnEarlierTriggerAreNotWrittenAgain(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := &skipping{w: &out, skip: 5}
	for _, part := range []string{"abc", "", "defg", "hi"} {
		if n, err := s.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("Write() = %d, %v", n, err)
		}
	}
	if out.String() != "fghi" {
		t.Errorf("wrote %q", out.String())
	}
}

func TestRequestsAreKeptWithinBounds(t *testing.T) {
	t.Parallel()
	var c requestCache
	small, large := &events.RunRequest{}, &events.RunRequest{Function: make([]byte, cachedRequestSize+1)}
	c.put("large", 1, large)
	c.put("first", 1, small)
	c.put("first", 2, small)
	if c.get("large", 1) != nil || c.get("first", 1) != nil || c.get("first", 2) != small {
		t.Error("it keeps what it must not, or not what it must")
	}
	for i := range cachedRequests {
		c.put(events.RunKey(string(rune(i))), 1, small)
	}
	if c.get("first", 2) != nil || len(c.byKey) > cachedRequests {
		t.Errorf("%d are kept", len(c.byKey))
	}
}
