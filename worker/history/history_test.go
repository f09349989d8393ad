package history

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"kiln/events"
)

// good is a run without faults.
func good() Run {
	started := &events.BuildStarted{RequestID: "r1", BuildID: "b1", Attempt: 1}
	built := &events.BuildCompleted{RequestID: "r1", BuildID: "b1", Outcome: events.OutcomeBuilt, Attempt: 1, Digest: "sha256:1", ImageRef: "reg/x@sha256:1", Image: "reg/x:latest"}
	reused := *built
	reused.RequestID, reused.Outcome = "r2", events.OutcomeReused
	return Run{
		Requests: []string{"r1", "r2", "r3"},
		Events: []events.Event{
			{ID: "r1", Type: events.TypeBuildRequested, Data: &events.BuildRequest{}},
			{ID: "r2", Type: events.TypeBuildRequested, Data: &events.BuildRequest{}},
			{ID: "r1.build.started.1", Type: events.TypeBuildStarted, Data: started},
			{ID: "r1.build.completed", Type: events.TypeBuildCompleted, Data: built},
			{ID: "r2.build.completed", Type: events.TypeBuildCompleted, Data: &reused},
			{ID: "r3.build.canceled", Type: events.TypeBuildCanceled, Data: &events.BuildCanceled{RequestID: "r3"}},
		},
		Ledger: map[string][]byte{
			"request.1": []byte(`{"request_id":"r1","terminal":{"id":"r1.build.completed"}}`),
			"build.b1":  []byte(`{"status":"completed","digest":"sha256:1","image_ref":"reg/x@sha256:1"}`),
			"tag.1":     []byte(`{"ref":"reg/x:latest","digest":"sha256:1","request_id":"r2"}`),
		},
		Executions:    []Execution{{"b1", 1}},
		MaxExecutions: 1,
		Digest: func(ref string) (string, error) {
			if strings.HasPrefix(ref, "reg/x") {
				return "sha256:1", nil
			}
			return "", errors.New("no such image")
		},
	}
}

func TestCheckFindsEachFault(t *testing.T) {
	t.Parallel()
	if got := Check(good()); len(got) > 0 {
		t.Fatalf("a good run has faults: %q", got)
	}
	for name, tc := range map[string]struct {
		spoil func(*Run)
		want  string
	}{
		"lost request":     {func(r *Run) { r.Events = r.Events[:5] }, "request r3 has no terminal event"},
		"unknown request":  {func(r *Run) { r.Requests = r.Requests[:2] }, "was not published"},
		"second outcome":   {func(r *Run) { r.Requests[2] = "r1"; r.Events[5].Data = &events.BuildCanceled{RequestID: "r1"} }, "ended with build.canceled after build.completed"},
		"same event twice": {func(r *Run) { r.Events = append(r.Events, r.Events[3]) }, "the same: true"},
		"old attempt":      {func(r *Run) { r.Events = append(r.Events, r.Events[2]) }, "attempt 1 of build b1 started after attempt 1"},
		"image is gone":    {func(r *Run) { r.Events[3].Data.(*events.BuildCompleted).ImageRef = "reg/y@sha256:1" }, "image reg/y@sha256:1 of request r1"},
		"two images":       {func(r *Run) { d := r.Events[4].Data.(*events.BuildCompleted); d.Digest = "sha256:2" }, "two images"},
		"tag elsewhere":    {func(r *Run) { r.Ledger["tag.1"] = []byte(`{"ref":"reg/x:latest","digest":"sha256:9"}`) }, "tag reg/x:latest"},
		"another decision": {func(r *Run) {
			r.Ledger["request.1"] = []byte(`{"request_id":"r1","terminal":{"id":"r1.build.failed"}}`)
		}, "decided as r1.build.failed"},
		"claim left":        {func(r *Run) { r.Ledger["build.b1"] = []byte(`{"status":"building"}`) }, "is claimed"},
		"recorded but gone": {func(r *Run) { r.Ledger["build.b1"] = []byte(`{"status":"completed","image_ref":"reg/z@sha256:1"}`) }, "reg/z@sha256:1"},
		"record broken":     {func(r *Run) { r.Ledger["build.b1"] = []byte(`{`) }, "ledger key build.b1"},
		"left":              {func(r *Run) { r.Backlog = map[string][]byte{"request.1": nil} }, "left in the backlog"},
		"late request":      {func(r *Run) { r.Events = append(r.Events[1:], r.Events[0]) }, "request r1 was published after events for it"},
		"start of an ended": {func(r *Run) {
			r.Events = append(r.Events, events.Event{Type: events.TypeBuildStarted, Data: &events.BuildStarted{RequestID: "r2", BuildID: "b1", Attempt: 2}})
		}, "had ended with build.completed"},
		"never started": {func(r *Run) { r.Events = slices.Delete(r.Events, 2, 3) }, "had not started for it"},
		"tag of an older request": {func(r *Run) {
			d := r.Events[4].Data.(*events.BuildCompleted)
			d.BuildID, d.Digest, d.ImageRef = "b2", "sha256:2", "reg/2@sha256:2"
		}, "the newest request r2 got sha256:2"},
		"ran twice": {func(r *Run) { r.Executions = append(r.Executions, r.Executions[0]) }, "ran twice"},
		"too many":  {func(r *Run) { r.Executions = append(r.Executions, Execution{"b1", 2}) }, "at most 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := good()
			tc.spoil(&r)
			got := Check(r)
			if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, tc.want) }) {
				t.Errorf("faults %q, want one with %q", got, tc.want)
			}
		})
	}
}
