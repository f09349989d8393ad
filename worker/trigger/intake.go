package trigger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
	"kiln/worker"
)

// arrival is a run.requested on its way in.
type arrival struct {
	record
	key        string
	request    *events.RunRequest
	fallbackID string
	// fault says why the request is refused.
	fault error
}

func newArrival(m events.Message, sequence uint64) *arrival {
	e, err := events.Decode(m)
	a := &arrival{key: events.RunKey(e.ID), fallbackID: m.FallbackID, record: record{
		RunID: e.ID, Sequence: sequence, Requested: m.Time.UTC(), TraceParent: e.TraceParent, TraceState: e.TraceState,
	}}
	if m.Time.IsZero() {
		a.Requested = time.Now().UTC()
	}
	content := m.Data
	if a.request, _ = e.Data.(*events.RunRequest); a.request != nil {
		a.Function = events.Identify(a.request.Function)
		a.Name = a.request.Run.Name
		if project := a.request.Run.Project; project != "" {
			a.Function.Project = project
		}
	}
	if err != nil {
		a.fault = &builder.Error{Kind: builder.KindInvalidRequest, Op: "reading the request", Err: err}
	} else if canonical, err := json.Marshal(a.request); err == nil {
		content = canonical
	}
	sum := sha256.Sum256(content)
	a.Content = hex.EncodeToString(sum[:])
	return a
}

// conflict makes a the arrival of a request whose id is taken by a different one. It is
// told under the message's own id.
func (a *arrival) conflict() {
	a.fault = builder.Errorf(builder.KindConflict, "reading the request", "run id %q was used before by a different request", a.RunID)
	a.RunID = a.fallbackID
	a.key = events.RunKey(a.RunID)
}

// takeRequest brings a requested run into the store. It is safe to run any number of
// times for the same request.
func (t *Trigger) takeRequest(ctx context.Context, msg worker.Message) answer {
	a := newArrival(msg.Event(), msg.Sequence())
	for {
		s, err := t.load(ctx, a.key)
		if err == nil && s.Content != "" && s.Content != a.Content && a.RunID != a.fallbackID {
			a.conflict()
			continue
		}
		if err == nil {
			err = t.admit(ctx, a, &s)
		}
		switch {
		case errors.Is(err, worker.ErrConflict): // somebody else knows more
		case errors.Is(err, errAgain):
			return answer{again: true, delay: worker.Delay(s.Tries, t.cfg.RetryDelay, t.cfg.RetryMaxDelay)}
		case err != nil:
			return t.stalled(a.key, err)
		default:
			return answer{}
		}
	}
}

// errAgain means that the try is counted and that another one may succeed.
var errAgain = errors.New("to be tried again")

// admit does what is to be done next for a run that arrives.
func (t *Trigger) admit(ctx context.Context, a *arrival, s *stored) error {
	switch s.State {
	case stateEnded:
		return t.finish(ctx, *s, true)
	case stateReady, stateStarting, stateRunning:
		return nil
	case stateWaiting:
		return t.provide(ctx, a, s, true)
	case stateNone:
	}
	fresh := stored{key: s.key, revision: s.revision, record: a.record}
	fresh.Cancel = s.Cancel
	if a.fault == nil {
		a.fault = t.refuse(a)
	}
	switch {
	case a.fault != nil:
		return t.settle(ctx, fresh, t.failed(a.record, a.fault, failure{}))
	case fresh.canceled():
		return t.settle(ctx, fresh, t.canceled(fresh.record, fresh.Cancel.Reason))
	}
	if err := t.open(ctx, s.key); err != nil {
		return err
	}
	t.reach("run opened")
	next := fresh.record
	next.State = stateWaiting
	if auto, says := autoBuild(a.request); auto {
		next.Build = buildRequest(s.key, a.Sequence)
		// Before the record, which anybody may end: nothing comes after the end.
		if err := t.tell(ctx, t.waiting(next, says), false, next.Requested); err != nil {
			return err
		}
		t.reach("wait published")
	}
	if err := t.save(ctx, s, next); err != nil {
		return err
	}
	t.reach("run stored")
	t.requests.put(s.key, a.Sequence, a.request)
	return t.provide(ctx, a, s, false)
}

// noImage stands for an image that is not known yet.
const noImage = "kiln.invalid/image@sha256:0000000000000000000000000000000000000000000000000000000000000000"

// refuse says what is wrong with a request, before anything is done for it.
func (t *Trigger) refuse(a *arrival) error {
	_, err := t.deps.Resolve(Job{RunID: t.runnerID(a.RunID), Attempt: 1, Request: *a.request, Image: noImage})
	if err != nil {
		return err
	}
	if auto, _ := autoBuild(a.request); auto {
		// What cannot be resolved is refused by the build, with the same words.
		return nil
	}
	resolved, err := function.Resolve(t.cfg.Function, worker.Input(a.RunID, unlessDeployed(a.request)))
	if image := specOf(a.request).Image; image != nil && strings.TrimSpace(*image) != "" {
		return err
	}
	if err != nil || resolved.Decision.Build {
		return imageRequired(a.Function, err)
	}
	return nil
}

// unlessDeployed is the build of a run that is not to be built if it has an image.
func unlessDeployed(r *events.RunRequest) *events.BuildRequest {
	b := r.Build()
	b.SkipDeployed, b.ForceBuild = true, false
	return &b
}

// spec is what is read of a function here.
type spec struct {
	Image *string `json:"image"`
	Build struct {
		AutoBuild *bool `json:"auto_build"`
	} `json:"build"`
}

func specOf(r *events.RunRequest) spec {
	var f struct {
		Spec spec `json:"spec"`
	}
	// The schema was checked: what is not there is not set.
	_ = json.Unmarshal(r.Function, &f)
	return f.Spec
}

// autoBuild reports whether an image may be built for the run, and who says so.
func autoBuild(r *events.RunRequest) (auto bool, says string) {
	if r.AutoBuild != nil {
		return bool(*r.AutoBuild), "the request"
	}
	wanted := specOf(r).Build.AutoBuild
	return wanted != nil && *wanted, "the function"
}

// provide asks for the image of a waiting run, or looks it up where none may be built. A
// repetition looks whether that was done before.
func (t *Trigger) provide(ctx context.Context, a *arrival, s *stored, repetition bool) error {
	if s.Build != "" {
		return t.ask(ctx, a.request, *s, repetition)
	}
	resolved, err := function.Resolve(t.cfg.Function, worker.Input(s.RunID, unlessDeployed(a.request)))
	if err == nil {
		var ref string
		if ref, err = t.deps.Pin(ctx, resolved.Decision.Image, resolved.RegistrySecret); err == nil {
			return t.ready(ctx, s, image{ref: ref})
		}
	}
	return t.retryOrFail(ctx, s, err)
}

// retryOrFail counts a try of a waiting run that failed for reasons of ours, or ends it.
func (t *Trigger) retryOrFail(ctx context.Context, s *stored, cause error) error {
	if builder.KindOf(cause) != builder.KindUnavailable || s.Tries+1 >= t.cfg.MaxAttempts {
		return t.settle(ctx, *s, t.failed(s.record, cause, failure{}))
	}
	next := s.record
	next.broke(cause)
	if err := t.save(ctx, s, next); err != nil {
		return err
	}
	t.deps.Log.Warn().Err(cause).Str("run_id", s.RunID).Msg("the image of a run cannot be looked up yet")
	return errAgain
}

// maxCauses bounds how many errors of earlier tries are kept.
const maxCauses = 10

// broke counts a try that broke for reasons of ours.
func (r *record) broke(cause error) {
	r.Tries++
	r.Causes = append(slices.Clip(r.Causes), worker.Clip(cause.Error(), 1<<10))
	r.Causes = r.Causes[max(0, len(r.Causes)-maxCauses):]
}

// ask requests the image of a run. The record is stored already: no result can come
// before somebody knows the run.
func (t *Trigger) ask(ctx context.Context, r *events.RunRequest, s stored, repetition bool) error {
	request := r.Build()
	build := t.event(s.record, events.TypeBuildRequested, 0, &request, time.Now().UTC())
	build.ID = s.Build
	if err := t.tell(ctx, build, repetition, s.Requested); err != nil {
		return err
	}
	t.reach("build requested")
	// Who canceled the run meanwhile canceled a build that was not requested yet.
	now, err := t.load(ctx, s.key)
	if err == nil && now.State == stateEnded && now.Build == s.Build && now.canceled() {
		err = t.tell(ctx, t.unwanted(now.record, ".cancel.late"), false, s.Requested)
	}
	return err
}

// tell publishes an event, unless a repetition finds it out there: the stream recognises
// duplicates for a limited time only.
func (t *Trigger) tell(ctx context.Context, e events.Event, repetition bool, since time.Time) error {
	if repetition {
		out, err := t.deps.Publisher.Published(ctx, e.Type, e.ID, since.Add(-time.Minute))
		if err != nil || out {
			return err
		}
	}
	if err := t.deps.Publisher.Publish(ctx, e); err != nil {
		return fmt.Errorf("publish %s: %w", e.ID, err)
	}
	return nil
}
