package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// build is one run of a plan.
type build struct {
	engine  *Engine
	plan    builder.Plan
	logs    io.Writer
	name    string
	firstID uint32
}

// errOutgrown says that a build needs more than its tmpfs has.
var errOutgrown = errors.New("the build root outgrew its tmpfs")

// run executes the plan, a second time on disk if it outgrows a tmpfs that was
// chosen for it.
func (b *build) run(ctx context.Context) (string, error) {
	where, release, err := b.engine.choosePlace(b.plan)
	if err != nil {
		return "", err
	}
	digest, err := b.runIn(ctx, where)
	release()
	if errors.Is(err, errOutgrown) {
		_, _ = fmt.Fprintf(b.logs, "The build needs more than the %d MiB that it got in memory: starting again on disk\n", where.size/mib)
		return b.runIn(ctx, place{size: b.plan.Limits.Disk})
	}
	return digest, err
}

// runIn executes the plan with a build root at the place, and leaves nothing behind.
func (b *build) runIn(ctx context.Context, where place) (digest string, err error) {
	e := b.engine
	folder := filepath.Join("builds", b.name)
	if err := errors.Join(e.state.root.RemoveAll(folder), e.state.root.MkdirAll(filepath.Join(folder, "root"), 0o700)); err != nil {
		return "", unavailable("making the build root", err)
	}
	defer func() {
		if rerr := e.state.root.RemoveAll(folder); rerr != nil && err == nil {
			err = unavailable("removing the build root", rerr)
		}
	}()
	dir, err := e.state.root.OpenRoot(folder)
	if err != nil {
		return "", unavailable("opening the build root", err)
	}
	defer dir.Close()
	err = inNamespace(func() error {
		digest, err = b.inside(ctx, dir, where)
		return err
	})
	if _, ok := errors.AsType[*builder.Error](err); err != nil && !ok && !errors.Is(err, errOutgrown) {
		err = unavailable("running the build", err)
	}
	return digest, err
}

// inside does the work in the build's mount namespace.
func (b *build) inside(ctx context.Context, dir *os.Root, where place) (string, error) {
	e := b.engine
	if err := where.mount(filepath.Join(dir.Name(), "root"), e.mountPoint); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(e.mountPoint)
	if err != nil {
		return "", fmt.Errorf("open build root: %w", err)
	}
	defer root.Close()
	if err := fill(root, b.plan, int(b.firstID)); err != nil {
		return "", fmt.Errorf("write build root: %w", err)
	}
	if err := b.fetchSource(ctx, root, where); err != nil {
		return "", err
	}
	if err := b.writeBundle(ctx, dir, where); err != nil {
		return "", err
	}
	log := kaniko.NewLog(b.logs)
	ended, err := b.execute(ctx, dir, root, where, log)
	if err != nil {
		return "", err
	}
	return b.judge(ctx, root, where, log, ended)
}

// fetchSource writes the plan's code into the context. It gives the time of the limits
// to the fetch too.
func (b *build) fetchSource(ctx context.Context, root *os.Root, where place) error {
	src := b.plan.Source
	if src == nil {
		return nil
	}
	const op = "fetching the source"
	if b.engine.cfg.Sources == nil {
		return builder.Errorf(builder.KindInvalidRequest, op, "this worker fetches no sources")
	}
	_, _ = fmt.Fprintf(b.logs, "Fetching the source %s at %s\n", src.URL, src.Version)
	folder := path.Join(rel(kaniko.Context), builder.SourceDir)
	if err := root.MkdirAll(folder, 0o755); err != nil {
		return unavailable(op, err)
	}
	dir, err := root.OpenRoot(folder)
	if err != nil {
		return unavailable(op, err)
	}
	defer dir.Close()
	// On a thread of its own: this one has other mounts than the rest of the process.
	fetched := make(chan error, 1)
	go func() { fetched <- b.engine.cfg.Sources.Fetch(ctx, src.URL, src.Version, b.plan.SourceEnv(), dir) }()
	switch err := <-fetched; {
	case err == nil:
		return own(dir, int(b.firstID))
	case ctx.Err() != nil:
		return canceled(ctx)
	case errors.Is(err, unix.ENOSPC) && b.mayMove(where):
		return errOutgrown
	default:
		return err
	}
}

// mayMove reports whether a build that does not fit may start again on disk.
func (b *build) mayMove(where place) bool {
	return where.tmpfs && b.engine.cfg.Root == RootAuto && where.size < b.plan.Limits.Disk
}

// own gives a fetched tree to the container's root, who could not read it otherwise.
func own(dir *os.Root, owner int) error {
	err := fs.WalkDir(dir.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return dir.Lchown(name, owner, owner)
	})
	if err != nil {
		return unavailable("writing the source", err)
	}
	return nil
}

// options finds out how the registries of the plan are reached.
func (b *build) options(ctx context.Context) (kaniko.Options, error) {
	options := kaniko.Options{DigestFile: "/" + digestFile, Dir: guarded}
	known := b.engine.cfg.Registries
	if known == nil {
		return options, nil
	}
	var err error
	options.Registries, err = kaniko.Reach(b.plan, func(host string) (builder.Access, error) {
		return known.Access(ctx, host, b.plan.RegistrySecret)
	})
	if err != nil && ctx.Err() != nil {
		err = canceled(ctx)
	}
	return options, err
}

// writeBundle writes the container's specification and what it mounts.
func (b *build) writeBundle(ctx context.Context, dir *os.Root, where place) error {
	e := b.engine
	options, err := b.options(ctx)
	if err != nil {
		return err
	}
	registries, err := options.Files()
	if err != nil {
		return err
	}
	if err := bundleFiles(dir, int(b.firstID), registries); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	env, err := options.Env()
	if err != nil {
		return err
	}
	env = slices.Concat(env, kaniko.Env(b.plan), []string{"SSL_CERT_FILE=" + guarded + "/ca.crt", "SSL_CERT_DIR=" + guarded})
	memory := b.plan.Limits.Memory
	if where.tmpfs {
		// The kernel counts pages of a tmpfs as memory of whoever wrote them.
		memory += where.size
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read limit of open files: %w", err)
	}
	spec := bundle{
		files:    min(files.Max, 65536),
		args:     kaniko.Args(b.plan, options),
		env:      env,
		root:     e.mountPoint,
		executor: e.executor,
		guarded:  filepath.Join(dir.Name(), "guarded"),
		hosts:    filepath.Join(dir.Name(), "hosts"),
		resolv:   filepath.Join(dir.Name(), "resolv.conf"),
		cgroup:   filepath.Join(e.cgroups.path, b.name),
		firstID:  b.firstID,
		limits:   b.plan.Limits,
		memory:   memory,
		swap:     e.cgroups.limitsSwap(),
	}.spec()
	raw, err := json.Marshal(spec)
	if err == nil {
		// It holds values of secrets.
		err = dir.WriteFile("config.json", raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write container specification: %w", err)
	}
	return nil
}

// ending is how a container ended.
type ending struct {
	code      int
	oomKilled bool
	diskFull  bool
	// failed is why there was no container to end.
	failed error
}

// execute runs the container and returns when nothing of it is left.
func (b *build) execute(ctx context.Context, dir, root *os.Root, where place, log *kaniko.Log) (ending, error) {
	e := b.engine
	if slices.Contains(e.runtime.containers(), b.name) {
		// Remains of the same attempt that could not be removed then.
		e.runtime.remove(ctx, b.name)
	}
	release, err := e.runtime.guard(b.name)
	if err != nil {
		return ending{}, err
	}
	defer release()
	read, err := b.readLog(log)
	if err != nil {
		return ending{}, err
	}
	cmd := e.runtime.command(dir.Name(), b.name)
	cmd.Stdout, cmd.Stderr = read.in, read.in
	code := -1
	var end ending
	if err = cmd.Start(); err == nil {
		watch := e.watch(ctx, b.name, where, root, cmd.Process.Pid)
		err = cmd.Wait()
		close(watch.launched)
		if err == nil {
			code, err = waitFor(dir)
		}
		end = watch.stop()
	}
	end.code = code
	end.oomKilled = end.oomKilled || e.cgroups.oomKills(b.name) > 0
	if e.record != nil {
		e.record.code = end.code
	}
	if err != nil {
		// The runtime's own log says more than its exit code.
		if msg := e.runtime.failure(dir); msg != "" {
			err = errors.New(msg)
		}
		end.failed = fmt.Errorf("start container: %w", err)
	}

	// Even when ctx is done, the remains must go.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.Grace)
	defer cancel()
	e.runtime.remove(clean, b.name)
	err = e.cgroups.remove(clean, b.name)
	read.finish(e.cfg.Grace)
	if err != nil {
		return ending{}, fmt.Errorf("remove container: %w", err)
	}
	return end, nil
}

// waitFor waits for the container's first process, which became a child of this
// process when the runtime's command ended.
func waitFor(dir *os.Root) (int, error) {
	raw, err := dir.ReadFile("pid")
	if err != nil {
		return -1, fmt.Errorf("read pid of container: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return -1, fmt.Errorf("pid of container is %q", raw)
	}
	for {
		var status unix.WaitStatus
		switch _, err := unix.Wait4(pid, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return -1, fmt.Errorf("wait for container: %w", err)
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// judge turns the ending into a digest or an error.
func (b *build) judge(ctx context.Context, root *os.Root, where place, log *kaniko.Log, end ending) (string, error) {
	if end.code == 0 {
		return readDigest(root)
	}
	if ctx.Err() != nil {
		return "", canceled(ctx)
	}
	if end.failed != nil {
		return "", end.failed
	}
	end.diskFull = end.diskFull || where.full(root)
	if b.mayMove(where) && (end.diskFull || log.NoSpace()) {
		return "", errOutgrown
	}
	limits := b.plan.Limits
	limits.Disk = where.size
	return "", kaniko.Classify(kaniko.Outcome{
		ExitCode: end.code, OOMKilled: end.oomKilled, DiskFull: end.diskFull, Limits: limits, Log: log,
	})
}

// readDigest reads what the executor left; commands could have left anything.
func readDigest(root *os.Root) (string, error) {
	info, err := root.Lstat(digestFile)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > 100) {
		err = errors.New("it is not a small regular file")
	}
	var raw []byte
	if err == nil {
		raw, err = root.ReadFile(digestFile)
	}
	if err == nil && !digestPattern.MatchString(strings.TrimSpace(string(raw))) {
		err = errors.New("it holds no digest")
	}
	if err != nil {
		return "", unavailable("reading the digest file", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
