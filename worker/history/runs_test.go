package history

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/events"
)

// goodRuns are runs without faults.
func goodRuns() Runs {
	at := time.Unix(1000, 0)
	return Runs{
		Requests: []string{"r1", "r2"},
		Events: []events.Event{
			{ID: "q.build.completed", Type: events.TypeBuildCompleted, Time: at, Data: &events.BuildCompleted{RequestID: "q"}},
			{ID: "r1.run.waiting", Type: events.TypeRunWaiting, Data: &events.RunWaiting{RunID: "r1"}},
			{ID: "r1.run.started.1", Type: events.TypeRunStarted, Data: &events.RunStarted{RunID: "r1", Attempt: 1, Started: at.Add(1), ImageRef: "i"}},
			{ID: "r1.run.completed", Type: events.TypeRunCompleted, Data: &events.RunCompleted{RunID: "r1", Attempt: 1}},
			{ID: "r2.run.canceled", Type: events.TypeRunCanceled, Data: &events.RunCanceled{RunID: "r2"}},
		},
		Records: map[string][]byte{
			"run." + events.RunKey("r1"): []byte(`{"state":"ended","terminal_type":"run.completed","build":"q"}`),
			"run." + events.RunKey("r2"): []byte(`{"state":"ended","terminal_type":"run.canceled"}`),
		},
		Starts: []Start{{"r1", 1}},
	}
}

func TestCheckRunsFindsEachFault(t *testing.T) {
	t.Parallel()
	if got := CheckRuns(goodRuns()); len(got) > 0 {
		t.Fatalf("good runs have faults: %q", got)
	}
	for name, tc := range map[string]struct {
		spoil func(*Runs)
		want  string
	}{
		"forgotten":     {func(r *Runs) { r.Events = r.Events[:4] }, "run r2 has no terminal event"},
		"unknown":       {func(r *Runs) { r.Requests = r.Requests[:1] }, "which was not requested"},
		"ended twice":   {func(r *Runs) { r.Events = append(r.Events, r.Events[4]) }, "run.canceled of run r2 comes after run.canceled"},
		"started after": {func(r *Runs) { r.Events = append(r.Events, r.Events[2]) }, "run.started of run r1 comes after run.completed"},
		"started twice": {func(r *Runs) { r.Events = slices.Insert(r.Events, 2, r.Events[2]) }, "attempt 1 of run r1 started after attempt 1"},
		"not started":   {func(r *Runs) { r.Events = slices.Delete(r.Events, 2, 3) }, "attempt 0 had started last"},
		"no build":      {func(r *Runs) { r.Events = r.Events[1:] }, "its build q was not completed"},
		"too early":     {func(r *Runs) { r.Events[0].Time = time.Unix(2000, 0) }, "before its image"},
		"two processes": {func(r *Runs) { r.Starts = append(r.Starts, r.Starts[0]) }, "started twice"},
		"stray process": {func(r *Runs) { r.Starts = append(r.Starts, Start{"r9", 1}) }, "of which nothing was told"},
		"left open":     {func(r *Runs) { r.Records["open.x"] = nil }, "open.x is left open"},
		"no record":     {func(r *Runs) { delete(r.Records, "run."+events.RunKey("r1")) }, "run r1 has no record"},
		"other end": {func(r *Runs) {
			r.Records["run."+events.RunKey("r2")] = []byte(`{"state":"ended","terminal_type":"run.failed"}`)
		}, "decided as run.failed"},
		"image is gone": {func(r *Runs) { r.Readable = func(string) error { return errors.New("no such image") } }, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := goodRuns()
			tc.spoil(&r)
			got := CheckRuns(r)
			if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, tc.want) }) {
				t.Errorf("faults %q, want one with %q", got, tc.want)
			}
		})
	}
}
