package runtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/builder"
	"kiln/builder/run"
)

// Harness is a runner under test and its surroundings.
type Harness struct {
	// Runner is used by one test only.
	Runner run.Runner
	// Another returns a further Runner for the same processes, as another program that
	// starts later would have it.
	Another func(*testing.T) run.Runner
	// Image is the suite's, by digest (see PushImage).
	Image string
	// Missing is an image that is not there; empty: nobody looks.
	Missing string
	// Memory and Disk say that the runner enforces such limits.
	Memory, Disk bool
	// LosesLogs says that the log of a process that was ended goes with it.
	LosesLogs bool
	// MaxResults is how many bytes of results the runner passes on.
	MaxResults int
	// Leftovers returns what is there of attempts, in words; nil: there is nothing to
	// look at.
	Leftovers func() []string
}

// Run runs the conformance suite: what the comment of run.Runner promises. newHarness is
// called once for every test of the suite.
func Run(t *testing.T, newHarness func(*testing.T) Harness) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Harness){
		"returns exit code, times and output":                  testExit,
		"passes on whole lines in order":                       testLines,
		"survives a log that cannot be written":                testBrokenLog,
		"returns results":                                      testResults,
		"gives the process environment, files and folder":      testInputs,
		"passes on hostile strings as they are":                testHostile,
		"takes the first command that the image has":           testChoice,
		"refuses what the image cannot run":                    testNothingToRun,
		"refuses a plan without identity":                      testIdentity,
		"reports an image that is missing":                     testMissing,
		"attaches after a shutdown, and starts nothing":        testShutdown,
		"attaches while another call waits":                    testTogether,
		"keeps the result until it is forgotten":               testKept,
		"starts nothing when it is canceled before":            testCanceledBefore,
		"ends the process when it is canceled":                 testCancel,
		"ends a process that another program started":          testCancelAttached,
		"ends a process that does not want to end":             testStubborn,
		"ends at the deadline of the context":                  testDeadline,
		"ends at the limit of the plan":                        testLimit,
		"ends at the memory limit":                             testMemory,
		"ends at the disk limit":                               testDisk,
		"forgets what runs, what has ended and what never was": testForget,
		"keeps attempts and runs apart":                        testApart,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newHarness(t))
		})
	}
}

// NewPlan returns a plan that runs the probe with the steps; equal names are equal runs.
func NewPlan(image, name string, steps ...string) run.Plan {
	sum := sha256.Sum256([]byte(name))
	return run.Plan{
		RunID: hex.EncodeToString(sum[:]), Attempt: 1, Image: image, Project: "demo", Function: "probe", Name: "suite",
		Commands: []run.Command{{Needs: "probe", Args: append([]string{"probe"}, steps...)}},
		Limits:   builder.Limits{Timeout: time.Minute, Memory: 64 << 20, PIDs: 50},
	}
}

func (h Harness) plan(t *testing.T, steps ...string) run.Plan {
	t.Helper()
	return NewPlan(h.Image, t.Name(), steps...)
}

// call is a call of Run at work.
type call struct {
	log     *Log
	started chan time.Time
	done    chan struct{}
	result  run.Result
	err     error
}

// begin calls Run.
func begin(ctx context.Context, r run.Runner, plan run.Plan) *call {
	c := &call{log: &Log{}, started: make(chan time.Time, 10), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.result, c.err = r.Run(ctx, plan, run.Watch{Logs: c.log, Started: func(at time.Time) { c.started <- at }})
	}()
	return c
}

// end waits for the call's return.
func (c *call) end(t *testing.T) (run.Result, error) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("Run did not return within 30 s; log:\n%s", c.log)
	}
	return c.result, c.err
}

// ok is end for a process that ends with the code.
func (c *call) ok(t *testing.T, code int) run.Result {
	t.Helper()
	result, err := c.end(t)
	if err != nil || result.ExitCode != code {
		t.Fatalf("exit code %d, error %v (%s), want %d; log:\n%s", result.ExitCode, err, builder.KindOf(err), code, c.log)
	}
	return result
}

// fails is end for a call that returns an error of the kind, whose text it returns.
func (c *call) fails(t *testing.T, kind builder.Kind) string {
	t.Helper()
	_, err := c.end(t)
	if _, ok := errors.AsType[*builder.Error](err); !ok || builder.KindOf(err) != kind {
		t.Fatalf("error %v (%s), want %s; log:\n%s", err, builder.KindOf(err), kind, c.log)
	}
	return err.Error()
}

// once checks that the log has one process's id, and returns it.
func (c *call) once(t *testing.T) string {
	t.Helper()
	id := ""
	for line := range strings.Lines(c.log.String()) {
		if !strings.HasPrefix(line, "id ") {
			continue
		}
		if id != "" {
			t.Fatalf("the process was started again:\n%s", c.log)
		}
		id = line
	}
	if id == "" {
		t.Fatalf("the log does not begin at the beginning:\n%s", c.log)
	}
	return id
}

// Log is a writer for a test that reads while a runner writes.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
	grew chan struct{}
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	if l.grew != nil {
		close(l.grew)
		l.grew = nil
	}
	return len(p), nil
}

// String returns what was written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Await returns once the log holds the text.
func (l *Log) Await(t *testing.T, text string) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), text)
		if l.grew == nil {
			l.grew = make(chan struct{})
		}
		grew := l.grew
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-grew:
		case <-late:
			t.Fatalf("the log never said %q:\n%s", text, l)
		}
	}
}
