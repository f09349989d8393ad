package trigger

import (
	"io"
	"strings"
	"sync"

	"kiln/events"
)

// skipping passes on what comes after the first skip bytes.
type skipping struct {
	w    io.Writer
	skip int64
}

// Write implements io.Writer.
func (s *skipping) Write(p []byte) (int, error) {
	n := len(p)
	if drop := min(s.skip, int64(len(p))); drop > 0 {
		s.skip -= drop
		p = p[drop:]
	}
	if len(p) > 0 {
		_, _ = s.w.Write(p) // a log that cannot be written must not fail a run
	}
	return n, nil
}

// noLog stands for the log of a run that did not get so far.
type noLog struct{}

func (noLog) Write(p []byte) (int, error) { return len(p), nil }
func (noLog) Close() error                { return nil }
func (noLog) Leave() error                { return nil }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// Bounds of requestCache.
const (
	cachedRequests    = 1024
	cachedRequestSize = 32 << 10
)

// requestCache keeps requests of open runs, so that a run whose image has come need not
// be read again. Safe for concurrent use.
type requestCache struct {
	mu    sync.Mutex
	byKey map[string]cachedRequest
	order []string
}

type cachedRequest struct {
	sequence uint64
	request  *events.RunRequest
}

func (c *requestCache) put(key string, sequence uint64, r *events.RunRequest) {
	if len(r.Function) > cachedRequestSize {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = map[string]cachedRequest{}
	}
	if _, there := c.byKey[key]; !there {
		c.order = append(c.order, key)
	}
	c.byKey[key] = cachedRequest{sequence, r}
	for ; len(c.order) > cachedRequests; c.order = c.order[1:] {
		delete(c.byKey, c.order[0])
	}
}

// get returns the request, nil if it is not there.
func (c *requestCache) get(key string, sequence uint64) *events.RunRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.byKey[key]; ok && r.sequence == sequence {
		return r.request
	}
	return nil
}
