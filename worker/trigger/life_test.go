package trigger

import (
	"strings"
	"testing"
	"time"

	"kiln/builder/run"
	"kiln/events"
)

func cancelOf(id string) events.Event {
	return events.Event{ID: "c-" + id, Source: "/me", Type: events.TypeRunCancel, Time: time.Now().UTC(), Data: &events.RunCancel{RunID: id, Reason: "Not wanted."}}
}

// isCanceled holds a run to have ended by the cancel.
func (w *world) isCanceled(id string) {
	w.t.Helper()
	if c, ok := w.terminal(id).Data.(*events.RunCanceled); !ok || c.Reason != "Not wanted." {
		w.t.Errorf("ended with %+v", w.terminal(id).Data)
	}
	w.closed()
	w.check()
}

func TestWaitingRunIsCanceledWithItsBuild(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.build = nil
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), newLink(1), nil)
	w.await("the build to be requested", func() bool { return len(w.of(events.TypeBuildRequested)) == 1 })
	<-w.publish(cancelOf("r")).acked
	w.isCanceled("r")
	canceled := w.of(events.TypeBuildCancel)
	if c, ok := canceled[0].Data.(*events.BuildCancel); len(canceled) != 1 || !ok || c.RequestID != buildRequest(events.RunKey("r"), 1) || c.BuildID != "" {
		t.Errorf("%+v", canceled)
	}
	// The result that comes all the same starts nothing.
	<-w.publish(built(buildRequest(events.RunKey("r"), 1))).acked
	if w.park.count() != 0 {
		t.Error("it started")
	}
}

func TestRunThatWaitsForASlotIsCanceled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park.play = func(p run.Plan) script { return script{forever: true} }
	cfg := quick("t1")
	cfg.Slots = 1
	w.publish(request("first", needsBuild, ""))
	w.join(cfg, newLink(1), nil)
	w.await("the first to start", func() bool { return w.park.count() == 1 })
	w.publish(request("r", needsBuild, ""))
	w.await("the second to be ready", func() bool { return w.runs.record("r").State == stateReady })
	w.publish(cancelOf("r"))
	w.await("the second to end", func() bool { return w.runs.record("r").State == stateEnded })
	w.publish(cancelOf("first"))
	w.isCanceled("first")
	w.isCanceled("r")
	if w.park.count() != 1 {
		t.Errorf("%d starts", w.park.count())
	}
}

func TestRunningRunIsEndedByACancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park.play = func(p run.Plan) script { return script{forever: true} }
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), newLink(1), nil)
	w.await("the run to be told", func() bool { return len(w.of(events.TypeRunStarted)) == 1 })
	w.publish(cancelOf("r"))
	w.isCanceled("r")
	if w.park.left() != 0 {
		t.Error("the process is left")
	}
	// Too late is answered by nothing.
	late := cancelOf("r")
	late.ID = "late"
	<-w.publish(late).acked
	if n := len(w.of(events.TypeRunCanceled)); n != 1 {
		t.Errorf("%d times canceled", n)
	}
}

func TestCancelThatComesFirstMeansTheRunsBeforeItOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	requests := w.queues["requests"]
	before := w.publish(request("r", needsBuild, ""))
	<-requests.ch // it is on its way
	cancel := w.publish(cancelOf("r"))
	w.join(quick("t1"), newLink(1), nil)
	<-cancel.acked
	requests.ch <- before
	w.isCanceled("r")

	early := w.publish(cancelOf("later"))
	<-early.acked
	w.publish(request("later", needsBuild, ""))
	if _, ok := w.terminal("later").Data.(*events.RunCompleted); !ok {
		t.Errorf("ended with %+v", w.terminal("later").Data)
	}
}

// runningElsewhere lets one trigger start a run that does not end.
func runningElsewhere(t *testing.T) (w *world, first *member) {
	t.Helper()
	w = newWorld(t)
	w.park.play = func(run.Plan) script { return script{forever: true, lines: []string{"one", "two"}} }
	w.publish(request("r", needsBuild, ""))
	cfg := quick("t1")
	cfg.Lease = 300 * time.Millisecond
	first = w.join(cfg, newLink(1), nil)
	w.await("the run to be told", func() bool { return len(w.of(events.TypeRunStarted)) == 1 })
	return w, first
}

// finish ends the only process with 0.
func (w *world) finish() {
	w.park.mu.Lock()
	defer w.park.mu.Unlock()
	for _, x := range w.park.processes {
		x.once.Do(func() { close(x.ended) })
	}
}

func TestAnotherTriggerAttachesToTheRunOfADeadOne(t *testing.T) {
	t.Parallel()
	w, first := runningElsewhere(t)
	first.link.kill()
	cfg := quick("t2")
	cfg.Lease = 300 * time.Millisecond
	w.join(cfg, newLink(2), nil)
	w.await("the takeover", func() bool { return w.runs.record("r").Owner == "t2" })
	w.finish()
	if done, ok := w.terminal("r").Data.(*events.RunCompleted); !ok || done.Attempt != 1 {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
	w.closed()
	if n := len(w.of(events.TypeRunStarted)); n != 1 || w.park.count() != 1 {
		t.Errorf("told %d times, %d starts", n, w.park.count())
	}
	if log := w.logs.of(events.RunKey("r") + " 1"); log != "one\ntwo\n-- end\n" {
		t.Errorf("log %q", log)
	}
}

func TestStoppedTriggerHandsItsRunsOver(t *testing.T) {
	t.Parallel()
	w, first := runningElsewhere(t)
	first.end()
	if r := w.runs.record("r"); r.State != stateRunning || r.Claim != "" || w.park.left() != 1 {
		t.Errorf("record %+v", r)
	}
	cfg := quick("t2")
	cfg.Lease = time.Hour // it need not be waited for
	w.join(cfg, newLink(2), nil)
	w.await("the takeover", func() bool { return w.runs.record("r").Owner == "t2" })
	w.finish()
	w.terminal("r")
	if log := w.logs.of(events.RunKey("r") + " 1"); log != "one\ntwo\n-- end\n" || w.park.count() != 1 {
		t.Errorf("log %q, %d starts", log, w.park.count())
	}
}

func TestRunOfADeadTriggerIsCanceled(t *testing.T) {
	t.Parallel()
	w, first := runningElsewhere(t)
	first.link.kill()
	cfg := quick("t2")
	cfg.Lease = 300 * time.Millisecond
	w.join(cfg, newLink(2), nil)
	w.publish(cancelOf("r"))
	w.isCanceled("r")
	if w.park.left() != 0 || w.park.count() != 1 {
		t.Errorf("%d left, %d starts", w.park.left(), w.park.count())
	}
}

func TestRunOfALostPlaceFailsAndIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	w, first := runningElsewhere(t)
	first.link.kill()
	cfg := quick("t2")
	cfg.Lease, cfg.Lost, cfg.Place = 200*time.Millisecond, 500*time.Millisecond, "elsewhere"
	w.join(cfg, newLink(2), nil)
	failed, ok := w.terminal("r").Data.(*events.RunFailed)
	if !ok || failed.Error.Code != "unavailable" || !strings.Contains(failed.Error.Message, "t1 at here") {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
	// A trigger of the place, once there is one again, removes what is left there.
	w.await("the end to be told", func() bool { return w.runs.record("r").Told })
	if w.park.left() != 1 || len(w.runs.keys(openPrefix)) != 1 {
		t.Errorf("%d processes left, open %v", w.park.left(), w.runs.keys(openPrefix))
	}
	back := quick("t3")
	back.Lease = 200 * time.Millisecond
	w.join(back, newLink(3), nil)
	w.closed()
	if w.park.count() != 1 || w.park.left() != 0 || len(w.of(events.TypeRunFailed)) != 1 {
		t.Errorf("%d starts, %d left, %d ends", w.park.count(), w.park.left(), len(w.of(events.TypeRunFailed)))
	}
}

func TestBrokenStartIsRepeatedAsTheNextAttempt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.park.play = badRuns
	w.publish(request("r", needsBuild, `,"run":{"name":"breaks once"}`))
	w.join(quick("t1"), newLink(1), nil)
	if done, ok := w.terminal("r").Data.(*events.RunCompleted); !ok || done.Attempt != 2 {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
	w.closed()
	if n := len(w.of(events.TypeRunStarted)); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestResultThatNoQueueBringsIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	builds := w.queues["builds"]
	w.queues["builds"] = &queue{ch: make(chan *message, 10)} // nobody reads it
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), newLink(1), func(_ *Trigger, d *Deps) {
		if d != nil {
			d.Builds = linkQueue{newLink(9), w, builds}
		}
	})
	if _, ok := w.terminal("r").Data.(*events.RunCompleted); !ok {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
}

func TestRequestForABuildThatWasLostIsPublishedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(request("r", needsBuild, ""))
	l := newLink(1)
	first := w.join(quick("t1"), l, func(tr *Trigger, _ *Deps) {
		if tr != nil {
			tr.reach = func(at string) {
				if at == "run stored" {
					l.kill()
				}
			}
		}
	})
	w.await("the run to be stored", func() bool { return w.runs.record("r").State == stateWaiting })
	first.end()
	for len(w.queues["requests"].ch) > 0 {
		<-w.queues["requests"].ch // and the message never comes again
	}
	w.join(quick("t2"), newLink(2), nil)
	if _, ok := w.terminal("r").Data.(*events.RunCompleted); !ok {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
}

func TestTriggerThatIsStoppedWhileIdleEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join(quick("t1"), newLink(1), nil)
	m.stop()
	select {
	case <-m.done:
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

func TestStartIsToldAlthoughTheStoreDidNotAnswerAtFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := newLink(1)
	w.park.play = func(run.Plan) script {
		l.mu.Lock() // the process starts in a moment in which nothing can be written
		l.before = 1000
		l.mu.Unlock()
		time.AfterFunc(100*time.Millisecond, func() {
			l.mu.Lock()
			l.before = 0
			l.mu.Unlock()
		})
		return script{forever: true}
	}
	w.publish(request("r", needsBuild, ""))
	w.join(quick("t1"), l, nil)
	w.await("the run to be told", func() bool { return len(w.of(events.TypeRunStarted)) == 1 && w.runs.record("r").State == stateRunning })
	w.finish()
	if done, ok := w.terminal("r").Data.(*events.RunCompleted); !ok || done.Attempt != 1 {
		t.Errorf("ended with %+v", w.terminal("r").Data)
	}
}
