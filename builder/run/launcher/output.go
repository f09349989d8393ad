package launcher

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// output is the pipe between a process and the launcher's standard output; the zero value
// is none.
type output struct {
	r, w *os.File
	done chan struct{}
}

func pipe() (output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return output{}, fmt.Errorf("make pipe: %w", err)
	}
	return output{r, w, make(chan struct{})}, nil
}

// fd is the end that the process gets.
func (o output) fd() uintptr {
	if o.w == nil {
		return 0
	}
	return o.w.Fd()
}

// follow copies what is written, once the process has its end.
func (o output) follow() {
	if o.r == nil {
		return
	}
	_ = o.w.Close()
	go func() {
		defer close(o.done)
		_, _ = io.Copy(os.Stdout, o.r)
	}()
}

// drain copies what there is when the process has ended. Others may have the pipe open
// for ever; what they write from now on is dropped.
func (o output) drain() {
	if o.r == nil {
		return
	}
	_ = o.r.SetReadDeadline(time.Now())
	<-o.done
	_ = o.r.SetReadDeadline(time.Time{})
	conn, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	_ = conn.Read(func(fd uintptr) bool {
		// A pipe holds 64 KiB, so there is an end to it, however fast others write.
		for range 4 {
			n, err := syscall.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return true
			}
			_, _ = os.Stdout.Write(buf[:n])
		}
		return true
	})
}
