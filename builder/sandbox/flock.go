package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockEvery is how often a lock that somebody else has is tried again; the kernel tells
// nobody of its release.
const lockEvery = 20 * time.Millisecond

// flock opens a file below root, made when it is missing, and locks it (unix.LOCK_SH or
// LOCK_EX), among all processes of this machine. The lock ends with the last descriptor
// of the file.
func flock(ctx context.Context, root *os.Root, name string, how int) (*os.File, error) {
	for {
		f, err := tryFlock(root, name, how)
		if f != nil || err != nil {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockEvery):
		}
	}
}

// tryFlock is flock that returns nil when somebody else has the lock.
func tryFlock(root *os.Root, name string, how int) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil && same(root, name, f) {
		return f, nil
	}
	_ = f.Close()
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return nil, nil
}

// same reports whether the file still has its name: whoever has the lock may have
// removed it.
func same(root *os.Root, name string, f *os.File) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := root.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist) && err == nil && os.SameFile(mine, named)
}
