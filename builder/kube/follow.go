package kube

import (
	"bufio"
	"context"
	"errors"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// logStreams opens logs.
type logStreams interface {
	// Stream returns the container's log from a time on (zero: all of it), each line
	// after its time stamp in RFC 3339 form and a space. It ends when the container has,
	// or when the connection breaks.
	Stream(ctx context.Context, pod, container string, since time.Time) (io.ReadCloser, error)
}

// follower copies the logs of a build's containers, one container after the other,
// every line once, whatever happens to connections.
type follower struct {
	logs logStreams
	// pod returns the Pod as it is now; nil: there is none (yet).
	pod func() *corev1.Pod
	// changes has something after every change of the Pod.
	changes <-chan struct{}
	// containers are in the order in which they run.
	containers []string
	// out is where a container's lines go.
	out func(container string) io.Writer
}

// run returns when every container's log was read to its end, or ctx is done.
func (f *follower) run(ctx context.Context) {
	for _, container := range f.containers {
		if !f.follow(ctx, container) {
			return
		}
		if t := terminated(f.pod(), container); t != nil && t.ExitCode != 0 {
			// Nothing comes after a failure.
			return
		}
	}
}

// follow copies one container's log to its end. It returns false when there is no more
// to come of any.
func (f *follower) follow(ctx context.Context, container string) bool {
	at := newPosition()
	const shortest, longest = 100 * time.Millisecond, 5 * time.Second
	pause := shortest
	for ctx.Err() == nil {
		pod := f.pod()
		if !begun(pod, container) {
			if over(pod) || !f.wait(ctx, longest) {
				return false
			}
			continue
		}
		// Only a stream that was opened after the end is known to have the end.
		ended := terminated(pod, container) != nil
		lines, err := f.copy(ctx, pod.Name, container, at, ended)
		switch {
		case err == nil && ended:
			return true
		case apierrors.IsNotFound(err):
			return false
		case lines > 0:
			pause = shortest
		}
		if !f.wait(ctx, pause) {
			return false
		}
		pause = min(2*pause, longest)
	}
	return false
}

// over reports whether the Pod will begin nothing any more.
func over(pod *corev1.Pod) bool {
	return pod != nil && (pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded)
}

// wait returns after a change, or after the pause at the latest; false: ctx is done.
func (f *follower) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-f.changes:
	case <-timer.C:
	}
	return true
}

// maxLine is the longest line that survives a broken connection whole.
const maxLine = 256 << 10

// copy passes on what is new, and returns how many lines that were. A last line without
// an end counts when the container has ended; otherwise it comes again.
func (f *follower) copy(ctx context.Context, pod, container string, at *position, ended bool) (lines int, err error) {
	stream, err := f.logs.Stream(ctx, pod, container, at.resume())
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	out := f.out(container)
	in := bufio.NewReaderSize(stream, maxLine)
	for within, passing := false, false; ; {
		part, err := in.ReadSlice('\n')
		whole := !errors.Is(err, bufio.ErrBufferFull)
		if errors.Is(err, io.EOF) && len(part) > 0 && (ended || within) {
			part = append(part, '\n')
		} else if whole && err != nil {
			if within && passing {
				_, _ = io.WriteString(out, "\n")
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return lines, err
		}
		if !within {
			if part, passing = at.next(part); passing {
				lines++
			}
		}
		if passing {
			_, _ = out.Write(part)
		}
		within = !whole
	}
}
