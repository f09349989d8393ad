package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/run"
)

const opRun = "running"

// attend waits for the end of a process that was started, by this call or another.
func (a attempt) attend(ctx context.Context, plan run.Plan, tail *tail) (finale, error) {
	if f, ended := a.ending(); ended {
		tail.finish()
		return f, nil
	}
	pid, err := a.running(ctx)
	if err != nil {
		// It may run: nobody must take it for ended, nor try another attempt.
		return finale{}, &builder.Error{Kind: builder.KindInterrupted, Op: opRun, Err: err}
	}
	var reason error
	if pid > 0 {
		if reason = a.watch(ctx, plan, pid); leaves(ctx) {
			return finale{}, runCanceled(ctx)
		}
	}
	return a.conclude(ctx, reason, tail)
}

// running returns the container's first process; 0: it does not run. The runtime's word
// counts: a pid may be somebody else's by now.
func (a attempt) running(ctx context.Context) (pid int, err error) {
	// A busy machine may need more than one try.
	for range 3 {
		if !slices.Contains(a.runner.runtime.containers(), a.container()) {
			return 0, nil
		}
		var status string
		if status, pid, err = a.runner.runtime.state(context.WithoutCancel(ctx), a.container()); err == nil {
			if status != "running" && status != "paused" {
				pid = 0
			}
			return pid, nil
		}
	}
	return 0, err
}

// state asks for a container's status and first process.
func (r ociRuntime) state(ctx context.Context, name string) (status string, pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.path, "--root", r.root, "state", name) //nolint:gosec // the operator names the runtime
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.WaitDelay = time.Second
	raw, err := cmd.Output()
	var s struct {
		Status string
		Pid    int
	}
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		return "", 0, fmt.Errorf("ask for the container's state: %w", err)
	}
	return s.Status, s.Pid, nil
}

// watch returns when the process has ended, with the reason when it was made to, or when
// ctx says to leave it.
func (a attempt) watch(ctx context.Context, plan run.Plan, pid int) (reason error) {
	ended, release := awaitEnd(pid)
	defer release()
	limit := time.NewTimer(time.Until(a.deadline(plan)))
	defer limit.Stop()
	look := time.NewTimer(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			if leaves(ctx) {
				return nil
			}
			reason = runCanceled(ctx)
		case <-limit.C:
			reason = builder.Errorf(builder.KindTimeout, opRun, "it took longer than the limit of %s", plan.Limits.Timeout)
		case <-look.C:
			began := time.Now()
			if a.used(plan.Limits.Disk) <= plan.Limits.Disk {
				// Looking takes at most a twentieth of the time.
				look.Reset(max(20*time.Since(began), time.Second))
				continue
			}
			reason = builder.Errorf(builder.KindDiskFull, opRun, "it wrote more than the limit of %d MiB", plan.Limits.Disk>>20)
		}
		a.intend(reason)
		a.stop(ctx, ended)
		return reason
	}
}

// deadline is when the process must have ended, whoever started it.
func (a attempt) deadline(plan run.Plan) time.Time {
	at := a.started()
	if m, ok := a.marker(); ok && at.Before(m.Made) {
		at = m.Made
	}
	return at.Add(plan.Limits.Timeout)
}

// stop asks the process to end, and then makes it.
func (a attempt) stop(ctx context.Context, ended <-chan struct{}) {
	r := a.runner
	ctx = context.WithoutCancel(ctx)
	for _, signal := range []string{"TERM", "KILL"} {
		_ = r.runtime.call(ctx, "kill", a.container(), signal)
		timer := time.NewTimer(r.cfg.Grace)
		select {
		case <-ended:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	r.cgroups.kill(a.container())
}

// awaitEnd returns a channel that is closed when a process has ended. The caller
// releases it.
func awaitEnd(pid int) (ended <-chan struct{}, release func()) {
	done := make(chan struct{})
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		// It is gone.
		close(done)
		return done, func() {}
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if err := readable(file); err == nil {
			// Where it is this process's to collect, it is collected.
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			close(done)
		}
	}()
	return done, func() {
		_ = file.SetReadDeadline(time.Now())
		<-gone
		_ = file.Close()
	}
}

// readable waits until a file can be read, or its deadline has passed.
func readable(file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
		return err == nil && n > 0
	})
}

// conclude finds out how the attempt ended, and removes what is left of it. When several
// do so at a time, the first one's word counts.
func (a attempt) conclude(ctx context.Context, reason error, tail *tail) (finale, error) {
	// Even when ctx is done, the remains must go.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*a.runner.cfg.Grace)
	defer cancel()
	lock, err := flock(clean, a.runner.state.root, a.folder+".lock", unix.LOCK_EX)
	if err != nil {
		return finale{}, unavailable("ending the run", err)
	}
	defer lock.Close()
	if f, ended := a.ending(); ended {
		tail.finish()
		return f, nil
	}
	if !a.exists() {
		return finale{}, unavailable("ending the run", errors.New("somebody forgot it meanwhile"))
	}
	oom := a.runner.cgroups.oomKills(a.container()) > 0
	if err := a.kill(clean); err != nil {
		return finale{}, unavailable("removing the container", err)
	}
	f := a.judge(reason, oom)
	tail.finish()
	return a.end(f), nil
}

// judge turns what is left of an ended attempt into its ending.
func (a attempt) judge(reason error, oom bool) finale {
	report, ok := a.report()
	switch stopped, intended := a.intent(); {
	case intended:
		return stopped
	case reason != nil:
		return failedWith(reason)
	case ok && report.Failure != "":
		return failedWith(builder.Errorf(builder.KindInvalidRequest, "starting the process", "%s", report.Failure))
	case oom && (!ok || report.ExitCode != 0):
		return failedWith(builder.Errorf(builder.KindOutOfMemory, opRun, "it needed more memory than its limit"))
	case ok:
		if report.Note != "" {
			a.say("%s", report.Note)
		}
		return finale{Result: run.Result{
			ExitCode: report.ExitCode, Started: report.Started, Finished: report.Finished, Results: report.Results,
		}}
	case a.started().IsZero():
		return failedWith(builder.Errorf(builder.KindUnavailable, "starting the container", "it was not started"))
	}
	return failedWith(builder.Errorf(builder.KindUnavailable, opRun, "its container is gone, and with it how it ended"))
}

// kill removes the container, running or not, and waits until nothing of it is left.
func (a attempt) kill(ctx context.Context) error {
	r := a.runner
	if slices.Contains(r.runtime.containers(), a.container()) {
		pid := a.pid()
		r.runtime.remove(ctx, a.container())
		if pid > 0 {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
	if err := r.cgroups.remove(ctx, a.container()); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
