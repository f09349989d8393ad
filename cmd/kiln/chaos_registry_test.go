//go:build chaos || load

package main

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	memory "github.com/google/go-containerregistry/pkg/registry"
)

// moody is a registry whose mood can be changed while it works.
type moody struct {
	*httptest.Server
	host string
	mood atomic.Pointer[string]
	mu   sync.Mutex
	rng  *rand.Rand
	hits map[string]int
}

// Moods of a registry.
const (
	moodCuts    = "registry cuts connections"
	moodSlow    = "registry is slow"
	moodBusy    = "registry answers 429"
	moodBroken  = "registry answers 500"
	moodLying   = "registry did it and answers 500"
	moodHealthy = ""
)

func newMoody(t *testing.T, seed uint64) *moody {
	t.Helper()
	m := &moody{rng: rand.New(rand.NewPCG(seed, 1)), hits: map[string]int{}}
	m.set(moodHealthy)
	next := memory.New(memory.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mood := *m.mood.Load()
		// Half of the requests, so that repeating one may help.
		if mood == moodHealthy || !m.hit(mood) {
			next.ServeHTTP(w, r)
			return
		}
		switch mood {
		case moodCuts:
			panic(http.ErrAbortHandler)
		case moodSlow:
			select {
			case <-r.Context().Done():
			case <-time.After(500 * time.Millisecond):
			}
			next.ServeHTTP(w, r)
		case moodBusy:
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, http.StatusTooManyRequests)
		case moodLying:
			next.ServeHTTP(httptest.NewRecorder(), r)
			fallthrough
		case moodBroken:
			http.Error(w, "broken on purpose", http.StatusInternalServerError)
		}
	}))
	t.Cleanup(m.Close)
	m.host = strings.TrimPrefix(m.URL, "http://")
	return m
}

func (m *moody) set(mood string) { m.mood.Store(&mood) }

// noticed reports whether a request met the mood.
func (m *moody) noticed(mood string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hits[mood] > 0
}

func (m *moody) hit(mood string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rng.IntN(2) == 0 {
		return false
	}
	m.hits[mood]++
	return true
}
