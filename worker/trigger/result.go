package trigger

import (
	"context"
	"errors"
	"strings"
	"time"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/events"
	"kiln/worker"
)

// image is what a run runs on, and where it comes from.
type image struct {
	ref     string
	buildID string
	outcome events.Outcome
}

// takeBuild brings how a build ended to the run that waits for it. Most builds are of
// others, which the id tells without reading more.
func (t *Trigger) takeBuild(ctx context.Context, msg worker.Message) answer {
	return t.result(ctx, msg.Event())
}

func (t *Trigger) result(ctx context.Context, m events.Message) answer {
	key, requestID, ok := waiter(m)
	if !ok {
		return answer{}
	}
	for {
		s, err := t.load(ctx, key)
		if err == nil && (s.State != stateWaiting || s.Build != requestID) {
			return answer{} // somebody did it, or the run ended
		}
		if err == nil {
			err = t.apply(ctx, m, &s)
		}
		switch {
		case errors.Is(err, worker.ErrConflict):
		case errors.Is(err, errAgain):
			return answer{again: true, delay: worker.Delay(s.Tries, t.cfg.RetryDelay, t.cfg.RetryMaxDelay)}
		case err != nil:
			return t.stalled(key, err)
		default:
			return answer{}
		}
	}
}

// waiter is the key of the run that an event about a build is for.
func waiter(m events.Message) (key, requestID string, ok bool) {
	id := ""
	if ids := m.Header["Nats-Msg-Id"]; len(ids) > 0 {
		id = ids[0]
	}
	for _, typ := range []events.Type{events.TypeBuildCompleted, events.TypeBuildFailed, events.TypeBuildCanceled} {
		if rest, found := strings.CutSuffix(id, "."+string(typ)); found {
			key, ok = runOf(rest)
			return key, rest, ok
		}
	}
	return "", "", false
}

// apply moves a waiting run on by how its build ended.
func (t *Trigger) apply(ctx context.Context, m events.Message, s *stored) error {
	e, err := events.Decode(m)
	if err != nil {
		err = &builder.Error{Kind: builder.KindUnavailable, Op: "reading how the build ended", Err: err}
		err = t.settle(ctx, *s, t.failed(s.record, err, failure{}))
		return err
	}
	switch data := e.Data.(type) {
	case *events.BuildCompleted:
		return t.built(ctx, data, s)
	case *events.BuildFailed:
		r := s.record
		r.BuildID = data.BuildID
		cause := builder.Errorf(KindBuildFailed, "building the image", "%s: %s", data.Error.Code, data.Error.Message)
		err = t.settle(ctx, *s, t.failed(r, cause, failure{build: &data.Error, log: data.LogTail}))
	case *events.BuildCanceled:
		err = t.settle(ctx, *s, t.canceled(s.record, "The build of its image was canceled: "+data.Reason))
	}
	return err
}

// built gives a waiting run its image.
func (t *Trigger) built(ctx context.Context, done *events.BuildCompleted, s *stored) error {
	found := image{ref: done.ImageRef, buildID: done.BuildID, outcome: done.Outcome}
	if found.ref != "" {
		return t.ready(ctx, s, found)
	}
	request, err := t.request(ctx, *s)
	if err == nil {
		var resolved builder.Request
		build := request.Build()
		if resolved, err = function.Resolve(t.cfg.Function, worker.Input(s.Build, &build)); err == nil {
			found.ref, err = t.deps.Pin(ctx, done.Image, resolved.RegistrySecret)
		}
	}
	if err != nil {
		return t.retryOrFail(ctx, s, err)
	}
	return t.ready(ctx, s, found)
}

// ready notes that the image is there. Where a slot is free the run is claimed with the
// same write and starts at once.
func (t *Trigger) ready(ctx context.Context, s *stored, found image) error {
	next := s.record
	next.State, next.Image, next.BuildID, next.Outcome, next.Ready = stateReady, found.ref, found.buildID, found.outcome, time.Now().UTC()
	next.Tries, next.Causes = 0, nil
	x := t.reserve(*s)
	if x != nil {
		x.take(&next)
	}
	err := t.save(ctx, s, next)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case x == nil:
	case err != nil:
		x.cancel(nil)
		t.free++
		t.wake()
	default:
		x.stored, x.claimed = *s, true
		t.enter(x) //nolint:contextcheck // the run outlives the message
	}
	if err == nil {
		t.reach("image noted")
	}
	return err
}

// reserve takes a slot for a run whose image is there; nil: none is free.
func (t *Trigger) reserve(s stored) *execution {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopping || t.free == 0 {
		return nil
	}
	t.free--
	return t.newExecution(t.work, s)
}
