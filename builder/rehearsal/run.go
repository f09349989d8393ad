package rehearsal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"kiln/builder"
	"kiln/builder/run"
)

// Runner executes runs by doing nothing for a while. What it started is noted in a folder
// that processes share, so that it is attached to after the death of one of them.
type Runner struct{ cfg Config }

// NewRunner returns a Runner with a Config in JSON.
func NewRunner(config []byte) (*Runner, error) {
	r := &Runner{}
	if err := json.Unmarshal(config, &r.cfg); err != nil {
		return nil, fmt.Errorf("read settings of the rehearsal: %w", err)
	}
	if r.cfg.RunDir != "" {
		if err := os.MkdirAll(r.cfg.RunDir, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of runs: %w", err)
		}
	}
	return r, nil
}

// Start is a line of Config.RunJournal: an attempt of a run was started.
type Start struct {
	RunID   string    `json:"run_id"`
	Attempt int       `json:"attempt"`
	PID     int       `json:"pid"`
	Image   string    `json:"image"`
	At      time.Time `json:"at"`
}

// Name implements run.Runner.
func (*Runner) Name() string { return "rehearsal" }

// Run implements run.Runner.
func (r *Runner) Run(ctx context.Context, plan run.Plan, watch run.Watch) (run.Result, error) {
	if ctx.Err() != nil {
		return run.Result{}, runEnded(ctx)
	}
	if len(r.cfg.RunCommand) > 0 {
		return r.process(ctx, watch)
	}
	if chance("run breaks", plan.RunID, plan.Attempt) < r.cfg.RunBreak {
		return run.Result{}, builder.Errorf(builder.KindUnavailable, "rehearsing", "this attempt is to break")
	}
	started, err := r.start(plan)
	if err != nil {
		return run.Result{}, err
	}
	if watch.Started != nil {
		watch.Started(started)
	}
	_, _ = fmt.Fprintf(watch.Logs, "rehearsing attempt %d of run %.12s\n", plan.Attempt, plan.RunID)
	takes := r.cfg.RunLeastMS + int64(chance("run time", plan.RunID, plan.Attempt)*float64(r.cfg.RunMostMS-r.cfg.RunLeastMS))
	timer := time.NewTimer(time.Until(started.Add(time.Duration(takes) * time.Millisecond)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		err := runEnded(ctx)
		if builder.KindOf(err) != builder.KindInterrupted {
			_ = os.Remove(r.file(plan.RunID, plan.Attempt))
		}
		return run.Result{}, err
	case <-timer.C:
	}
	result := run.Result{Started: started, Finished: started.Add(time.Duration(takes) * time.Millisecond), Results: []byte(`{"rehearsed":true}`)}
	if chance("run fails", plan.RunID) < r.cfg.RunFail {
		result.ExitCode = 1
	}
	return result, nil
}

// Forget implements run.Runner.
func (r *Runner) Forget(_ context.Context, runID string, attempt int) error {
	if r.cfg.RunDir == "" {
		return nil
	}
	if err := os.Remove(r.file(runID, attempt)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "forgetting a run", Err: err}
	}
	return nil
}

func (r *Runner) file(runID string, attempt int) string {
	return filepath.Join(r.cfg.RunDir, filepath.Base(runID)+"."+strconv.Itoa(attempt))
}

// start notes that the attempt starts, or finds when it did.
func (r *Runner) start(plan run.Plan) (time.Time, error) {
	now := time.Now().UTC()
	if r.cfg.RunDir == "" {
		return now, nil
	}
	fault := func(err error) (time.Time, error) {
		return now, &builder.Error{Kind: builder.KindUnavailable, Op: "noting a start", Err: err}
	}
	// A link is there with all that is in the file, or not at all.
	draft := r.file(plan.RunID, plan.Attempt) + "." + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(draft, []byte(now.Format(time.RFC3339Nano)), 0o600); err != nil {
		return fault(err)
	}
	defer os.Remove(draft) //nolint:errcheck // what is left harms nobody
	err := os.Link(draft, r.file(plan.RunID, plan.Attempt))
	if err == nil {
		return now, r.noteStart(Start{RunID: plan.RunID, Attempt: plan.Attempt, PID: os.Getpid(), Image: plan.Image, At: now})
	}
	raw, readErr := os.ReadFile(r.file(plan.RunID, plan.Attempt))
	if !errors.Is(err, os.ErrExist) || readErr != nil {
		return fault(errors.Join(err, readErr))
	}
	at, err := time.Parse(time.RFC3339Nano, string(raw))
	if err != nil {
		return fault(err)
	}
	return at, nil
}

// noteStart appends to the journal. A short line of one write is not mixed with others.
func (r *Runner) noteStart(s Start) error {
	if r.cfg.RunJournal == "" {
		return nil
	}
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(r.cfg.RunJournal, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// process runs a real process, for measuring how soon it starts.
func (r *Runner) process(ctx context.Context, watch run.Watch) (run.Result, error) {
	cmd := exec.CommandContext(ctx, r.cfg.RunCommand[0], r.cfg.RunCommand[1:]...) //nolint:gosec // the test names it
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	err := cmd.Start()
	started := time.Now().UTC()
	if err != nil {
		return run.Result{}, builder.Errorf(builder.KindCommandFailed, "starting a process", "%s", err)
	}
	if watch.Started != nil {
		watch.Started(started)
	}
	err = cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return run.Result{}, &builder.Error{Kind: builder.KindUnavailable, Op: "waiting for a process", Err: err}
	}
	return run.Result{ExitCode: cmd.ProcessState.ExitCode(), Started: started, Finished: time.Now().UTC()}, nil
}

// runEnded is the error that a runner returns when ctx is done.
func runEnded(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, builder.ErrLeaseLost) {
		return &builder.Error{Kind: builder.KindInterrupted, Op: "rehearsing", Err: cause}
	}
	return ended(ctx)
}

var _ run.Runner = (*Runner)(nil)
