package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/run"
	"kiln/builder/run/launcher"
)

// run starts the attempt unless it was started before, and attends it to its end.
func (a attempt) run(ctx context.Context, plan run.Plan, watch run.Watch) (finale, error) {
	lock, err := a.lock(ctx)
	if err != nil {
		return finale{}, err
	}
	defer func() { _ = lock.Close() }()
	_, marked := a.marker()
	_, ended := a.ending()
	if ended {
		// Whoever ended it may have been killed before it had tidied up.
		a.tidy()
	}
	if !marked && !ended {
		if ctx.Err() != nil {
			return finale{}, runCanceled(ctx)
		}
		if err := a.reset(); err != nil {
			return finale{}, unavailable("making the run's folder", err)
		}
	}
	tail, err := a.follow(watch)
	if err != nil {
		return finale{}, unavailable("following the log", err)
	}
	defer tail.stop()
	if !marked {
		err = a.begin(ctx, plan, lock)
	}
	if err != nil {
		return a.unstarted(ctx, err)
	}
	_ = lock.Close()
	return a.attend(ctx, plan, tail)
}

// lock waits for whoever starts or ends the attempt. When ctx is canceled so that the
// process has to end, that is waited for too, for a while.
func (a attempt) lock(ctx context.Context) (*os.File, error) {
	root, name := a.runner.state.root, a.folder+".lock"
	lock, err := flock(ctx, root, name, unix.LOCK_EX)
	if err != nil && ctx.Err() != nil && !leaves(ctx) {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.runner.cfg.Grace)
		defer cancel()
		lock, err = flock(grace, root, name, unix.LOCK_EX)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, runCanceled(ctx)
	case err != nil:
		return nil, unavailable("starting the run", err)
	}
	return lock, nil
}

// unstarted is for an attempt that could not be started. Before its marker was made, it
// is as if nobody had asked; afterwards it must never be started again.
func (a attempt) unstarted(ctx context.Context, err error) (finale, error) {
	if ctx.Err() != nil {
		err = runCanceled(ctx)
	}
	if _, ok := errors.AsType[*builder.Error](err); !ok {
		err = unavailable("starting the run", err)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.runner.cfg.Grace)
	defer cancel()
	if _, marked := a.marker(); !marked {
		_ = a.runner.state.root.RemoveAll(a.folder)
		return finale{}, err
	}
	if leaves(ctx) {
		// The next caller finds it started, or not.
		return finale{}, err
	}
	if kerr := a.kill(clean); kerr != nil {
		return finale{}, unavailable("removing the container", kerr)
	}
	return a.end(failedWith(err)), nil
}

// say writes a line of the runner's into the log.
func (a attempt) say(format string, args ...any) {
	f, err := a.runner.state.root.OpenFile(a.file(logFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = fmt.Fprintf(f, format+"\n", args...)
}

// begin prepares the container and starts it.
func (a attempt) begin(ctx context.Context, plan run.Plan, lock *os.File) error {
	r := a.runner
	image, err := r.images.get(ctx, r.cfg.Images, plan.Image, plan.RegistrySecret, a.say)
	if err != nil {
		return err
	}
	// Once there is a marker, it says that the image is in use.
	defer image.release()
	user, err := userOf(image)
	if err != nil {
		return err
	}
	if err := a.fetchSource(ctx, plan, user); err != nil {
		return err
	}
	if err := a.fill(plan, image, user); err != nil {
		return fmt.Errorf("write the run's folder: %w", err)
	}
	if ctx.Err() != nil {
		return runCanceled(ctx)
	}
	if err := a.mark(marker{Image: image.key, Made: time.Now(), Timeout: plan.Limits.Timeout}); err != nil {
		return fmt.Errorf("mark the attempt as started: %w", err)
	}
	return inNamespace(func() error { return a.start(image, lock) })
}

// fetchSource writes the plan's code into the attempt's folder.
func (a attempt) fetchSource(ctx context.Context, plan run.Plan, user guestUser) error {
	src := plan.Source
	if src == nil {
		return nil
	}
	const op = "fetching the source"
	root := a.runner.state.root
	switch {
	case a.runner.cfg.Sources == nil:
		return builder.Errorf(builder.KindInvalidRequest, op, "this runner fetches no sources")
	case src.Version == "":
		return builder.Errorf(builder.KindInvalidRequest, op, "it is not pinned")
	case !filepath.IsAbs(src.Target) || filepath.Clean(src.Target) != src.Target || src.Target == "/":
		return builder.Errorf(builder.KindInvalidRequest, op, "%q is not a folder below the root", src.Target)
	}
	a.say("Fetching the source at %s", src.Version)
	if err := root.Mkdir(a.file(sourceDir), 0o755); err != nil {
		return unavailable(op, err)
	}
	dir, err := root.OpenRoot(a.file(sourceDir))
	if err != nil {
		return unavailable(op, err)
	}
	defer dir.Close()
	if err := a.runner.cfg.Sources.Fetch(ctx, src.URL, src.Version, plan.SourceEnv, dir); err != nil {
		return err
	}
	return own(dir, a.runner.hostID(user.uid))
}

// fill writes what the container is made of.
func (a attempt) fill(plan run.Plan, image *unpacked, user guestUser) error {
	r := a.runner
	root, err := r.state.root.OpenRoot(a.folder)
	if err != nil {
		return err
	}
	defer root.Close()
	spec, err := json.Marshal(guestSpec(plan, image.config))
	if err != nil {
		return err
	}
	first := int(r.cfg.SubUIDBase)
	host := &writer{root: root}
	host.dir(bundleDir, 0o700)
	host.dir(workDir, 0o700)
	host.file(inGuest(launcher.Program), nil, 0o644)
	host.dir(guestDir, 0o755)
	guest := &writer{root: root, owner: first}
	guest.dir(upperDir, 0o755)
	guest.file(inGuest(launcher.SpecFile), spec, 0o644)
	guest.file(bundleDir+"/hosts", hostsFile(runHostname), 0o644)
	// Without a resolver the run reaches what it names by address.
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	guest.file(bundleDir+"/resolv.conf", resolv, 0o644)
	users := &writer{root: root, owner: r.hostID(user.uid)}
	users.dir(inGuest(launcher.Out), 0o755)
	if err := errors.Join(host.err, guest.err, users.err); err != nil {
		return err
	}
	config, err := a.spec(plan, image, user)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	// It holds values of secrets.
	return root.WriteFile(bundleDir+"/config.json", raw, 0o600)
}

// hostID is the host's id of a container's.
func (r *Runner) hostID(id int) int { return int(r.cfg.SubUIDBase) + id }

// start mounts the root and runs the OCI runtime, which inherits the lock: should this
// process end before the runtime does, others wait for what comes of it. It runs in a
// mount namespace of its own; the container keeps what it needs of it.
func (a attempt) start(image *unpacked, lock *os.File) error {
	r := a.runner
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", escape(image.dir), escape(a.path(upperDir)), escape(a.path(workDir)))
	if err := unix.Mount("kiln", r.mountPoint, "overlay", unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount the image (the state directory must be on a file system that overlayfs takes): %w", err)
	}
	log, err := r.state.root.OpenFile(a.file(logFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := r.runtime.command(a.path(bundleDir), a.container())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock}
	// A session of its own, and no signal when this process dies.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		dir, oerr := r.state.root.OpenRoot(a.file(bundleDir))
		if oerr == nil {
			defer dir.Close()
			if msg := r.runtime.failure(dir); msg != "" {
				err = errors.New(msg)
			}
		}
		return fmt.Errorf("start container: %w", err)
	}
	// It held secrets, and nobody reads it again.
	return r.state.root.Remove(a.file(bundleDir + "/config.json"))
}

// container is the name of the attempt's container and cgroup.
func (a attempt) container() string { return "kiln-run-" + a.name }

// escape makes a path safe for the options of a mount.
func escape(path string) string {
	var out []byte
	for _, c := range []byte(path) {
		if c == '\\' || c == ',' || c == ':' {
			out = append(out, '\\')
		}
		out = append(out, c)
	}
	return string(out)
}
