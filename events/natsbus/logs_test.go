package natsbus_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"kiln/events/natsbus"
)

func TestLogComesBackInOrderByAttempt(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	want := map[int]string{}
	for attempt := range 3 {
		w := bus.Logs().Open("b1", attempt+1)
		var text strings.Builder
		for line := range 500 {
			fmt.Fprintf(&text, "attempt %d line %d\n", attempt+1, line)
		}
		want[attempt+1] = text.String()
		// In chunks that do not end at lines.
		for rest := text.String(); rest != ""; rest = rest[min(777, len(rest)):] {
			if _, err := w.Write([]byte(rest[:min(777, len(rest))])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for attempt, text := range map[int]string{2: want[2], 0: want[1] + want[2] + want[3]} {
		for _, follow := range []bool{false, true} {
			var got bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if err := bus.Logs().Read(ctx, "b1", attempt, follow, &got); err != nil {
				t.Errorf("Read(attempt %d, follow %v) = %v", attempt, follow, err)
			}
			cancel()
			if got.String() != text {
				t.Errorf("attempt %d, follow %v: %d bytes, want %d", attempt, follow, got.Len(), len(text))
			}
		}
	}
}

func TestFollowedLogEndsWithItsAttempt(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	w := bus.Logs().Open("b1", 1)
	lines := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- bus.Logs().Read(t.Context(), "b1", 1, true, writerFunc(func(p []byte) (int, error) {
			lines <- string(p)
			return len(p), nil
		}))
	}()
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got := <-lines; got != line {
			t.Errorf("followed %q, want %q", got, line)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLogWithoutAServerDoesNotBlock(t *testing.T) {
	t.Parallel()
	nc := connect(t, startServer(t, nil))
	bus, err := natsbus.New(nc, natsbus.Topology{})
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	w := bus.Logs().Open("b1", 1)
	for range 1000 {
		if _, err := w.Write(bytes.Repeat([]byte("x"), 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
