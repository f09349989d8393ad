package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/builder/run/launcher"
)

// Files of an attempt's folder, runs/<name>:
//
//	log          what the process and the runner write
//	marker       exists before a start is tried: the attempt is never started again
//	kiln/        mounted in the container: what to start, and out/ for what came of it
//	bundle/      what the OCI runtime reads, and the pid of the container
//	upper/ work/ what the process changes of the image
//	source/      code that was fetched for the run
//	reason       why somebody ends it; whoever sees the end first tells that
//	ending       how it ended; the folders are gone then
//
// Beside it, runs/<name>.lock is held by who starts or ends the attempt, and by the OCI
// runtime's command, which may outlive its caller.
const (
	logFile    = "log"
	markerFile = "marker"
	reasonFile = "reason"
	endingFile = "ending"
	guestDir   = "kiln"
	bundleDir  = "bundle"
	upperDir   = "upper"
	workDir    = "work"
	sourceDir  = "source"
)

// inGuest is where a file of the launcher's is in the attempt's folder.
func inGuest(file string) string {
	return path.Join(guestDir, strings.TrimPrefix(file, launcher.Dir+"/"))
}

// attempt is one attempt of a run, as its folder has it.
type attempt struct {
	runner *Runner
	name   string
	// folder is relative to the state directory.
	folder string
}

// marker is what is known of an attempt before it starts.
type marker struct {
	// Image is the key of the image that it uses.
	Image string    `json:"image"`
	Made  time.Time `json:"made"`
	// Timeout is the limit of the process's time.
	Timeout time.Duration `json:"timeout"`
}

// finale is how an attempt ended: with a result, or an error.
type finale struct {
	Result  run.Result   `json:"result"`
	Kind    builder.Kind `json:"kind,omitempty"`
	Op      string       `json:"op,omitempty"`
	Message string       `json:"message,omitempty"`
}

func failedWith(err error) finale {
	f := finale{Kind: builder.KindOf(err), Message: err.Error()}
	if e, ok := errors.AsType[*builder.Error](err); ok {
		f.Op, f.Message = e.Op, e.Err.Error()
	}
	return f
}

func (f finale) result() (run.Result, error) {
	if f.Kind != "" {
		return run.Result{}, &builder.Error{Kind: f.Kind, Op: f.Op, Err: errors.New(f.Message)}
	}
	return f.Result, nil
}

func (a attempt) file(name string) string { return path.Join(a.folder, name) }

func (a attempt) path(name string) string { return path.Join(a.runner.state.path, a.folder, name) }

// reset makes the folder new, with an empty log.
func (a attempt) reset() error {
	root := a.runner.state.root
	err := errors.Join(root.RemoveAll(a.folder), root.MkdirAll(a.file(inGuest(launcher.Out)), 0o755))
	if err == nil {
		// Only the folder itself is for nobody else: what is below it is mounted.
		err = root.Chmod(a.folder, 0o700)
	}
	if err != nil {
		return err
	}
	return root.WriteFile(a.file(logFile), nil, 0o600)
}

func (a attempt) ending() (finale, bool) {
	var f finale
	return f, a.read(endingFile, &f)
}

func (a attempt) marker() (marker, bool) {
	var m marker
	return m, a.read(markerFile, &m)
}

func (a attempt) read(name string, into any) bool {
	raw, err := a.runner.state.root.ReadFile(a.file(name))
	return err == nil && json.Unmarshal(raw, into) == nil
}

// mark makes the marker; it is an error when there is one.
func (a attempt) mark(m marker) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	// Whole, and at once: a marker that cannot be read would be no marker.
	root, part := a.runner.state.root, a.file(markerFile+".part")
	if err := root.WriteFile(part, raw, 0o600); err != nil {
		return err
	}
	return errors.Join(root.Link(part, a.file(markerFile)), root.Remove(part))
}

// intend writes why the attempt is about to be ended, unless somebody did.
func (a attempt) intend(reason error) {
	root, part := a.runner.state.root, a.file(fmt.Sprintf("%s.%d", reasonFile, time.Now().UnixNano()))
	raw, err := json.Marshal(failedWith(reason))
	if err != nil {
		return
	}
	// Without it, another caller may take the end for the process's own.
	if root.WriteFile(part, raw, 0o600) == nil {
		_ = root.Link(part, a.file(reasonFile))
		_ = root.Remove(part)
	}
}

func (a attempt) intent() (finale, bool) {
	var f finale
	return f, a.read(reasonFile, &f)
}

// end writes how the attempt ended, unless that is known already, removes everything
// else that takes space or is secret, and returns what counts. The lock is held.
func (a attempt) end(f finale) finale {
	if known, ok := a.ending(); ok {
		return known
	}
	root := a.runner.state.root
	raw, err := json.Marshal(f)
	part := a.file(endingFile + ".part")
	if err == nil {
		err = errors.Join(root.WriteFile(part, raw, 0o600), root.Rename(part, a.file(endingFile)))
	}
	if err != nil && f.Kind == "" {
		// What is not kept must not be told: another caller would be told otherwise.
		return failedWith(unavailable("keeping the result", err))
	}
	a.tidy()
	return f
}

// tidy removes what an attempt that has ended does not need.
func (a attempt) tidy() {
	for _, name := range []string{guestDir, bundleDir, upperDir, workDir, sourceDir} {
		_ = a.runner.state.root.RemoveAll(a.file(name))
	}
}

// pid returns that of the container's first process; 0: there never was one.
func (a attempt) pid() int {
	raw, err := a.runner.state.root.ReadFile(a.file(path.Join(bundleDir, "pid")))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// started returns when the process was started; zero: not yet.
func (a attempt) started() time.Time {
	raw, err := a.fromGuest(launcher.StartedFile, 100)
	if err != nil {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, string(raw))
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// report returns what the launcher left; false: nothing that can be read.
func (a attempt) report() (launcher.Report, bool) {
	var r launcher.Report
	raw, err := a.fromGuest(launcher.ReportFile, run.MaxResults+4096)
	if err != nil || json.Unmarshal(raw, &r) != nil {
		return launcher.Report{}, false
	}
	results, note := launcher.CheckResults(r.Results, run.MaxResults)
	if bytes.Equal(results, []byte("null")) || note != "" {
		results = nil
	}
	r.Results = results
	return r, true
}

// fromGuest reads a file that the process could have put anything in the place of.
func (a attempt) fromGuest(file string, most int64) ([]byte, error) {
	f, err := a.runner.state.root.OpenFile(a.file(inGuest(file)), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > most:
		return nil, fmt.Errorf("%s is no small regular file", file)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// exists reports whether there is anything of the attempt.
func (a attempt) exists() bool {
	_, err := a.runner.state.root.Lstat(a.folder)
	return !errors.Is(err, fs.ErrNotExist)
}
