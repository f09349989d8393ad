package sandbox

import (
	"context"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher ends a container whose context is done or whose root is too large, and
// notes what is gone once the container is.
type watcher struct {
	// launched is closed when the runtime's command has ended, quit when the container
	// has.
	launched, quit chan struct{}

	done chan struct{}
	seen ending
}

// stop ends the watch and returns what it saw.
func (w *watcher) stop() ending {
	close(w.quit)
	<-w.done
	return w.seen
}

// every is how often a running container is looked at.
const every = 200 * time.Millisecond

// watch watches the container that the runtime's command, of the given pid, starts.
func (e *Engine) watch(ctx context.Context, name string, where place, root *os.Root, pid int) *watcher {
	w := &watcher{launched: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		next := time.Now()
		canceled := ctx.Done()
		for {
			select {
			case <-w.quit:
				return
			case <-canceled:
				canceled = nil
				e.end(ctx, name, w, pid)
			case <-tick.C:
				w.seen.oomKilled = w.seen.oomKilled || e.cgroups.oomKills(name) > 0
				if w.seen.diskFull || time.Now().Before(next) {
					continue
				}
				began := time.Now()
				if where.full(root) || (!where.tmpfs && usage(root, where.size) > where.size) {
					w.seen.diskFull = true
					e.end(ctx, name, w, pid)
				}
				// Looking takes at most a twentieth of the time.
				next = began.Add(max(20*time.Since(began), time.Second))
			}
		}
	}()
	return w
}

// end kills the container until it is gone. When that does not help, the runtime's
// command and the processes in the container's cgroup are killed.
func (e *Engine) end(ctx context.Context, name string, w *watcher, pid int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.Grace)
	defer cancel()
	for {
		_ = e.runtime.kill(ctx, name)
		select {
		case <-w.quit:
			return
		case <-time.After(50 * time.Millisecond):
			continue
		case <-ctx.Done():
		}
		select {
		case <-w.launched:
		default:
			_ = unix.Kill(-pid, unix.SIGKILL)
		}
		e.cgroups.kill(name)
		return
	}
}

// usage is how many bytes of disk the files below root take; counting stops above
// the limit. What vanishes meanwhile counts nothing.
func usage(root *os.Root, limit int64) int64 {
	var total int64
	linked := make(map[uint64]bool)
	_ = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read takes no space that matters
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it vanished
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || linked[stat.Ino] {
			return nil
		}
		if stat.Nlink > 1 && !d.IsDir() {
			linked[stat.Ino] = true
		}
		if total += stat.Blocks * 512; total > limit {
			return fs.SkipAll
		}
		return nil
	})
	return total
}

// full reports whether there is next to nothing left for a build root at the place:
// of a disk, which others use too, half a GiB is left alone.
func (p place) full(root *os.Root) bool {
	reserve, few := mib/4, uint64(16)
	if !p.tmpfs {
		reserve = gib / 2
	}
	dir, err := root.Open(".")
	if err != nil {
		return false
	}
	defer dir.Close()
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil {
		return false
	}
	free := int64(s.Bavail) * s.Bsize //nolint:gosec // no file system has 2^63 blocks
	return free < reserve || (s.Files > 0 && s.Ffree < few)
}
