package sandbox

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace runs fn on a thread with a mount namespace of its own. Processes that
// fn starts are in it too; it ends with the last of them. Mounts of the host that go
// away go away in it as well.
func inNamespace(fn func() error) error {
	done := make(chan error, 1)
	go onThread(fn, done)
	return <-done
}

func onThread(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread of a process lives as long as the process, and shows its
		// namespaces as those of the process. While it is held here, another is taken.
		defer runtime.UnlockOSThread()
		inner := make(chan error, 1)
		go onThread(fn, inner)
		done <- <-inner
		return
	}
	// Not unlocked: the thread ends with this goroutine, and never runs another.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		done <- fmt.Errorf("make mount namespace: %w", err)
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		done <- fmt.Errorf("make mounts private: %w", err)
		return
	}
	done <- fn()
}
