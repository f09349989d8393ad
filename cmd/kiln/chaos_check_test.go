//go:build chaos

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder/rehearsal"
	"kiln/events"
)

// life is what the history tells of one request.
type life struct {
	requested int // position in the history, from 1
	started   map[int]int
	terminals map[events.Type]int
	terminal  events.Event
	at        int
}

// check holds the history against what is promised, whatever broke.
func (c *chaos) check(kills int) {
	history, executions := c.stored(), c.executions()
	lives := c.lives(history)
	c.checkOutcomes(lives)
	c.checkDigests(lives)
	c.checkTags(lives)
	c.checkExecutions(lives, executions)
	c.checkLeftovers()
	c.report(kills)
	outcomes := map[events.Type]int{}
	for _, l := range lives {
		outcomes[l.terminal.Type]++
	}
	fmt.Printf("chaos: %d requests, %v, %d events, %d executions\n", len(lives), outcomes, len(history), len(executions))
}

func (c *chaos) lives(history []events.Event) map[string]*life {
	lives := map[string]*life{}
	for i, e := range history {
		id := requestOfEvent(e)
		if id == "" {
			continue
		}
		l := lives[id]
		if l == nil {
			l = &life{started: map[int]int{}, terminals: map[events.Type]int{}}
			lives[id] = l
		}
		switch data := e.Data.(type) {
		case *events.BuildRequest:
			if l.requested == 0 {
				l.requested = i + 1
			}
		case *events.BuildStarted:
			if l.at > 0 {
				c.t.Errorf("%s: build.started %d comes after the terminal event", id, data.Attempt)
			}
			l.started[data.Attempt] = i + 1
		}
		if e.Type.Terminal() {
			l.terminals[e.Type]++
			if l.at == 0 {
				l.terminal, l.at = e, i+1
			}
		}
	}
	return lives
}

func requestOfEvent(e events.Event) string {
	switch data := e.Data.(type) {
	case *events.BuildRequest:
		return e.ID
	case *events.BuildQueued:
		return data.RequestID
	case *events.BuildStarted:
		return data.RequestID
	case *events.BuildCompleted:
		return data.RequestID
	case *events.BuildFailed:
		return data.RequestID
	case *events.BuildCanceled:
		return data.RequestID
	default:
		return ""
	}
}

// checkOutcomes: every request ends exactly once, after it was requested, and one that
// was built was started before.
func (c *chaos) checkOutcomes(lives map[string]*life) {
	for id := range c.requests {
		if lives[id] == nil || lives[id].at == 0 {
			c.t.Errorf("%s has no terminal event", id)
		}
	}
	for id, l := range lives {
		if c.requests[id].Function == nil {
			c.t.Errorf("%s was never requested", id)
		}
		if len(l.terminals) > 1 {
			c.t.Errorf("%s ended in more than one way: %v", id, l.terminals)
		}
		for typ, n := range l.terminals {
			if n > 1 {
				c.t.Errorf("%s has %d events %s", id, n, typ)
			}
		}
		if l.at > 0 && l.at < l.requested {
			c.t.Errorf("%s ended before it was requested", id)
		}
		if done, ok := l.terminal.Data.(*events.BuildCompleted); ok && done.Outcome == events.OutcomeBuilt {
			if at := l.started[done.Attempt]; at == 0 || at > l.at {
				c.t.Errorf("%s was built by attempt %d, of which it has no build.started before", id, done.Attempt)
			}
		}
	}
}

// checkDigests: what was reported completed is readable, and one build has one digest.
func (c *chaos) checkDigests(lives map[string]*life) {
	digests := map[string]string{}
	for id, l := range lives {
		done, ok := l.terminal.Data.(*events.BuildCompleted)
		if !ok {
			continue
		}
		if other := digests[done.BuildID]; other != "" && other != done.Digest {
			c.t.Errorf("build %s was reported with %s and %s", done.BuildID, other, done.Digest)
		}
		digests[done.BuildID] = done.Digest
		if got := c.digest(done.ImageRef); got != done.Digest {
			c.t.Errorf("%s: %s is %q in the registry", id, done.ImageRef, got)
		}
	}
}

func (c *chaos) digest(ref string) string {
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		c.t.Errorf("reference %q: %v", ref, err)
		return ""
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	desc, err := remote.Head(parsed, remote.WithContext(ctx))
	if err != nil {
		c.t.Errorf("read %s: %v", ref, err)
		return ""
	}
	return desc.Digest.String()
}

// checkTags: a tag is at the newest request's image.
func (c *chaos) checkTags(lives map[string]*life) {
	newest := map[string]*life{}
	for _, l := range lives {
		if done, ok := l.terminal.Data.(*events.BuildCompleted); ok {
			if other := newest[done.Image]; other == nil || other.requested < l.requested {
				newest[done.Image] = l
			}
		}
	}
	for tag, l := range newest {
		done := l.terminal.Data.(*events.BuildCompleted)
		ref := tag
		if !strings.HasPrefix(ref, c.registry.host) {
			ref = c.registry.host + "/" + strings.TrimPrefix(ref, ".")
		}
		if got := c.digest(ref); got != done.Digest {
			c.t.Errorf("tag %s is at %s, but the newest request %s got %s", tag, got, done.RequestID, done.Digest)
		}
	}
	if len(newest) == 0 {
		c.t.Error("nothing was completed")
	}
}

// checkExecutions: no attempt is executed twice, and there are no more executions than
// attempts that were started.
func (c *chaos) checkExecutions(lives map[string]*life, executions []rehearsal.Execution) {
	type attempt struct {
		build  string
		number int
	}
	began := map[attempt]int{}
	sandboxed := 0
	for _, e := range executions {
		if e.Ended {
			continue
		}
		if e.Real {
			sandboxed++
		}
		a := attempt{e.BuildID, e.Attempt}
		if began[a]++; began[a] > 1 {
			c.t.Errorf("attempt %d of build %s was executed %d times", e.Attempt, e.BuildID, began[a])
		}
	}
	started := 0
	for _, l := range lives {
		started += len(l.started)
	}
	if len(began) > started {
		c.t.Errorf("%d executions, but only %d were announced by build.started", len(began), started)
	}
	c.faults["real build in a sandbox"] = sandboxed
	fmt.Printf("chaos: %d executions in real sandboxes\n", sandboxed)
}

// checkLeftovers: nothing waits, nothing runs, no build root is left.
func (c *chaos) checkLeftovers() {
	kv, err := c.js.KeyValue(c.t.Context(), "KILN_BACKLOG")
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := kv.ListKeys(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for key := range keys.Keys() {
		entry, err := kv.Get(c.t.Context(), key)
		if err == nil {
			c.t.Errorf("the backlog still holds %s: %s", key, entry.Value())
		}
	}
	for _, w := range c.workers {
		builds, _ := filepath.Glob(filepath.Join(c.dir, w.name, "builds", "*"))
		for _, left := range builds {
			c.t.Errorf("left over: %s", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	if strings.Contains(string(mounts), c.dir) {
		c.t.Error("a mount is left over")
	}
	c.checkClaims()
}

// checkClaims: no build is claimed any more.
func (c *chaos) checkClaims() {
	kv, err := c.js.KeyValue(c.t.Context(), "KILN_LEDGER")
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := kv.ListKeysFiltered(c.t.Context(), "build.*")
	if err != nil {
		c.t.Fatal(err)
	}
	for key := range keys.Keys() {
		entry, err := kv.Get(c.t.Context(), key)
		if err != nil {
			continue
		}
		var record struct {
			Status    string
			ExpiresAt time.Time `json:"expires_at"`
		}
		// A claim whose time is over is none: the next who wants the build takes it.
		if err := json.Unmarshal(entry.Value(), &record); err != nil || record.Status == "building" && time.Now().Before(record.ExpiresAt) {
			c.t.Errorf("build %s is still claimed: %s", key, entry.Value())
		}
	}
}
