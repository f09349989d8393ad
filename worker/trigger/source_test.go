package trigger

import (
	"context"
	"fmt"
	"testing"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/events"
)

func TestEveryAttemptLoadsTheSameSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var loaded []string
	w.park.play = func(p run.Plan) script {
		loaded = append(loaded, p.Source.Version)
		if p.Attempt < 3 {
			return script{broken: builder.Errorf(builder.KindUnavailable, "pulling", "no registry")}
		}
		return script{lines: []string{"hello"}}
	}
	asked := 0
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), newLink(1), func(_ *Trigger, d *Deps) {
		if d == nil {
			return
		}
		d.Resolve = func(j Job) (run.Plan, error) {
			plan, err := plain(j)
			plan.Source, plan.SourceEnv = &builder.Source{URL: "git://x", Target: "/code"}, map[string]string{"GIT_TOKEN": "t"}
			return plan, err
		}
		d.PinSource = func(_ context.Context, url string, env map[string]string) (string, error) {
			if asked++; asked == 1 {
				return "", builder.Errorf(builder.KindUnavailable, "looking", "no network")
			}
			return fmt.Sprintf("%s %s %d", url, env["GIT_TOKEN"], asked), nil
		}
	})
	if _, ok := w.terminal("r").Data.(*events.RunCompleted); !ok {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
	// The first attempt found no source, the second no registry.
	if asked != 2 || len(loaded) != 2 || loaded[0] != "git://x t 2" || loaded[1] != loaded[0] {
		t.Errorf("asked %d times, loaded %q", asked, loaded)
	}
}
