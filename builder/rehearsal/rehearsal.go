// Package rehearsal is an engine, and a runner, for tests of everything around them: it executes
// most plans itself, in the time and with the failures that its settings say, so that
// many lives of builds can be lived in a short time. No program that is shipped has it.
package rehearsal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/builder"
)

// Engine stands before a real engine.
type Engine struct {
	builder.Engine
	cfg     Config
	journal *os.File
}

// Config says what is rehearsed. Shares are of 1.
type Config struct {
	// Digest is what every build returns at once, for measuring everything else. It has
	// to be in the target's repository. Then nothing else counts.
	Digest string `json:"digest,omitempty"`
	// Journal is the file that every execution is noted in, by all processes.
	Journal string `json:"journal,omitempty"`
	// LeastMS and MostMS bound how long an execution takes.
	LeastMS int64 `json:"least_ms,omitempty"`
	MostMS  int64 `json:"most_ms,omitempty"`
	// Fail is the share of builds whose command fails, Break that of attempts that
	// break for reasons of ours, Real that of builds for the real engine.
	Fail  float64 `json:"fail,omitempty"`
	Break float64 `json:"break,omitempty"`
	Real  float64 `json:"real,omitempty"`

	// RunDir is the folder in which a Runner notes what it started, for all processes,
	// and RunJournal the file that every start is noted in.
	RunDir     string `json:"run_dir,omitempty"`
	RunJournal string `json:"run_journal,omitempty"`
	// RunLeastMS and RunMostMS bound how long a run takes.
	RunLeastMS int64 `json:"run_least_ms,omitempty"`
	RunMostMS  int64 `json:"run_most_ms,omitempty"`
	// RunFail is the share of runs that end with 1, RunBreak that of attempts that break
	// for reasons of ours.
	RunFail  float64 `json:"run_fail,omitempty"`
	RunBreak float64 `json:"run_break,omitempty"`
	// RunCommand is a program that is really started, for measuring. Then nothing else
	// counts.
	RunCommand []string `json:"run_command,omitempty"`
}

// Execution is a line of the journal: that an attempt began, or how it ended.
type Execution struct {
	BuildID string    `json:"build_id"`
	Attempt int       `json:"attempt"`
	PID     int       `json:"pid"`
	Real    bool      `json:"real,omitempty"`
	Ended   bool      `json:"ended,omitempty"`
	Outcome string    `json:"outcome,omitempty"`
	At      time.Time `json:"at"`
}

// New returns an Engine before next, with a Config in JSON.
func New(next builder.Engine, config []byte) (*Engine, error) {
	r := &Engine{Engine: next}
	if err := json.Unmarshal(config, &r.cfg); err != nil {
		return nil, fmt.Errorf("read settings of the rehearsal: %w", err)
	}
	if r.cfg.Journal == "" {
		return r, nil
	}
	var err error
	// A short line appended by one write is not mixed with those of others.
	r.journal, err = os.OpenFile(r.cfg.Journal, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	return r, err
}

// chance is a number below 1 that depends on nothing but its arguments.
func chance(what ...any) float64 {
	sum := sha256.Sum256(fmt.Append(nil, what...))
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

// Run implements builder.Engine.
func (r *Engine) Run(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	if r.cfg.Digest != "" {
		return builder.Result{Digest: r.cfg.Digest}, nil
	}
	forReal := chance("real", plan.BuildID) < r.cfg.Real
	if err := r.note(Execution{BuildID: plan.BuildID, Attempt: plan.Attempt, Real: forReal}); err != nil {
		return builder.Result{}, err
	}
	began := time.Now()
	var result builder.Result
	var err error
	if forReal {
		result, err = r.Engine.Run(ctx, plan, logs)
	} else {
		result, err = r.play(ctx, plan, logs)
	}
	result.Duration = time.Since(began)
	outcome := "ok"
	if err != nil {
		outcome = string(builder.KindOf(err))
	}
	if noted := r.note(Execution{BuildID: plan.BuildID, Attempt: plan.Attempt, Real: forReal, Ended: true, Outcome: outcome}); err == nil {
		err = noted
	}
	return result, err
}

func (r *Engine) note(e Execution) error {
	if r.journal == nil {
		return nil
	}
	e.PID, e.At = os.Getpid(), time.Now().UTC()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.journal.Write(append(line, '\n'))
	}
	return err
}

func (r *Engine) play(ctx context.Context, plan builder.Plan, logs io.Writer) (builder.Result, error) {
	takes := r.cfg.LeastMS + int64(chance("time", plan.BuildID, plan.Attempt)*float64(r.cfg.MostMS-r.cfg.LeastMS))
	_, _ = fmt.Fprintf(logs, "rehearsing attempt %d for %d ms\n", plan.Attempt, takes)
	timer := time.NewTimer(time.Duration(takes) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return builder.Result{}, ended(ctx)
	case <-timer.C:
	}
	switch {
	case chance("fail", plan.BuildID) < r.cfg.Fail:
		return builder.Result{}, builder.Errorf(builder.KindCommandFailed, "rehearsing", "this build is to fail")
	case chance("break", plan.BuildID, plan.Attempt) < r.cfg.Break:
		return builder.Result{}, builder.Errorf(builder.KindUnavailable, "rehearsing", "this attempt is to break")
	}
	digest, err := pushRehearsed(ctx, plan)
	if err != nil && ctx.Err() != nil {
		err = ended(ctx)
	}
	return builder.Result{Digest: digest}, err
}

// ended is the error that an engine returns when ctx is done.
func ended(ctx context.Context) error {
	cause, kind := context.Cause(ctx), builder.KindCanceled
	switch {
	case errors.Is(cause, builder.ErrShutdown):
		kind = builder.KindInterrupted
	case errors.Is(cause, context.DeadlineExceeded):
		kind = builder.KindTimeout
	}
	return &builder.Error{Kind: kind, Op: "rehearsing", Err: cause}
}

// pushRehearsed pushes an image that differs between attempts, so that it can be told
// whose it is.
func pushRehearsed(ctx context.Context, plan builder.Plan) (string, error) {
	ref, err := name.ParseReference(plan.Destination, name.Insecure)
	if err != nil {
		return "", fmt.Errorf("read destination: %w", err)
	}
	layer := static.NewLayer(fmt.Appendf(nil, "%s %d", plan.BuildID, plan.Attempt), types.DockerLayer)
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	}
	if err == nil {
		err = remote.Write(ref, img, remote.WithContext(ctx))
	}
	if err != nil {
		return "", &builder.Error{Kind: builder.KindUnavailable, Op: "pushing the rehearsed image", Err: err}
	}
	digest, err := img.Digest()
	return digest.String(), err
}
