package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stateDir is the folder of one Engine:
//
//	lock      held while the Engine lives
//	builds/   one folder per running build
//	runtime/  the OCI runtime's state
type stateDir struct {
	path string
	// mark names what belongs to this folder outside of it: cgroups.
	mark string
	root *os.Root
	lock *os.File
}

// ErrStateInUse is matched by the error of New when another process uses StateDir.
var ErrStateInUse = errors.New("another kiln process uses it; stop that one or set another state directory")

// openFolder opens the folder, made when it is missing, without a lock.
func openFolder(dir string) (*stateDir, error) {
	path, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(path, 0o700)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	return &stateDir{path: path, mark: markOf(path), root: root}, nil
}

func openState(dir string) (*stateDir, error) {
	s, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	if s.lock, err = s.root.OpenFile("lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		_ = s.root.Close()
		return nil, fmt.Errorf("open lock of state directory: %w", err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = s.close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrStateInUse
		}
		return nil, fmt.Errorf("lock state directory %s: %w", s.path, err)
	}
	if err := s.root.MkdirAll("builds", 0o700); err != nil {
		_ = s.close()
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	return s, nil
}

func markOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:6])
}

// close gives the folder back; the lock goes with its descriptor.
func (s *stateDir) close() error {
	return errors.Join(s.root.RemoveAll("runtime"), s.lock.Close(), s.root.Close())
}
