package main

import (
	"encoding/json"
	"strings"
	"testing"

	"kiln/builder"
	"kiln/builder/function"
	runs "kiln/builder/run"
	"kiln/events"
	"kiln/worker/trigger"
)

func job(image string) trigger.Job {
	return trigger.Job{
		RunID: strings.Repeat("a", 64), Attempt: 1, Image: image + "@sha256:" + strings.Repeat("0", 64),
		Request: events.RunRequest{Function: json.RawMessage(`{"kind":"job","metadata":{"name":"f"},"spec":{"command":"main","build":{}}}`)},
	}
}

func TestImagesOfRunsArePulledWithTheSecretOfTheirRegistry(t *testing.T) {
	t.Parallel()
	resolve := planRuns(runs.Config{}, function.Config{Registry: "registry.example.com/team", RegistrySecret: "push"})
	for image, want := range map[string]string{
		"registry.example.com/team/f": "push", "registry.example.com/other/f": "push", "registry.example.com.evil/f": "",
	} {
		plan, err := resolve(job(image))
		if err != nil || plan.RegistrySecret != want {
			t.Errorf("%s: secret %q, %v, want %q", image, plan.RegistrySecret, err, want)
		}
	}
}

func TestWhatARunAsksForReachesItsPlan(t *testing.T) {
	t.Parallel()
	resolve := planRuns(runs.Config{}, function.Config{})
	j := job("r/f")
	j.Request.Run = events.RunSpec{Timeout: "90s", Args: []string{"x"}, Resources: events.RunResources{Memory: 1 << 20, GPUs: 2}}
	plan, err := resolve(j)
	if err != nil {
		t.Fatal(err)
	}
	last := plan.Commands[len(plan.Commands)-1]
	if plan.Limits.Timeout.Seconds() != 90 || plan.Limits.Memory != 1<<20 || plan.GPUs[gpuResource] != 2 || strings.Join(last.Args, " ") != "main x" {
		t.Errorf("plan = %+v", plan)
	}
	for _, bad := range []string{"soon", "-1s", "0"} {
		j.Request.Run.Timeout = bad
		if _, err := resolve(j); builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), "run.timeout") {
			t.Errorf("timeout %q: %v", bad, err)
		}
	}
}
