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
	quit chan struct{}
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

func (e *Engine) watch(ctx context.Context, b *build, where place, root *os.Root) *watcher {
	w := &watcher{quit: make(chan struct{}), done: make(chan struct{})}
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
				e.end(ctx, b.name, w.quit)
			case <-tick.C:
				w.seen.oomKilled = w.seen.oomKilled || e.cgroups.oomKills(b.name) > 0
				if w.seen.diskFull || time.Now().Before(next) {
					continue
				}
				began := time.Now()
				if full(root) || (!where.tmpfs && usage(root, where.size) > where.size) {
					w.seen.diskFull = true
					e.end(ctx, b.name, w.quit)
				}
				// Looking takes at most a twentieth of the time.
				next = began.Add(max(20*time.Since(began), time.Second))
			}
		}
	}()
	return w
}

// end kills the container until it is gone. When the runtime cannot, the processes
// in its cgroup are killed.
func (e *Engine) end(ctx context.Context, name string, gone <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.Grace)
	defer cancel()
	for {
		_ = e.runtime.kill(ctx, name)
		select {
		case <-gone:
			return
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			e.cgroups.kill(name)
			return
		}
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

// full reports whether the file system of root has next to nothing left.
func full(root *os.Root) bool {
	const few = 16
	dir, err := root.Open(".")
	if err != nil {
		return false
	}
	defer dir.Close()
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &s); err != nil { //nolint:gosec // a file descriptor fits an int
		return false
	}
	free := int64(s.Bavail) * s.Bsize //nolint:gosec // no file system has 2^63 blocks
	return free < mib/4 || (s.Files > 0 && s.Ffree < few)
}
