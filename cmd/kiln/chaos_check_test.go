//go:build chaos

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/events"
	"kiln/worker/history"
)

// check holds the history against what is promised, whatever broke.
func (c *chaos) check(kills int) {
	outcomes := c.judge()
	c.checkLeftovers()
	c.report(kills)
	if outcomes[events.TypeBuildCompleted] == 0 {
		c.t.Error("nothing was completed")
	}
}

// judge checks the invariants and returns how many events of each type there are.
func (c *chaos) judge() map[events.Type]int {
	run := history.Run{
		Requests: c.ids, Events: c.stored(), Digest: c.digest,
		Ledger: c.records("KILN_LEDGER"), Backlog: c.records("KILN_BACKLOG"),
	}
	for _, e := range c.executions() {
		switch {
		case !e.Ended:
			run.Executions = append(run.Executions, history.Execution{BuildID: e.BuildID, Attempt: e.Attempt})
		case e.Real:
			c.faults["real build in a sandbox"]++
		}
	}
	for _, fault := range history.Check(run) {
		c.t.Error(fault)
	}
	counts := map[events.Type]int{}
	for _, e := range run.Events {
		counts[e.Type]++
	}
	fmt.Printf("chaos: %d requests, %d executions, %d in real sandboxes; %v\n", len(c.ids), len(run.Executions), c.faults["real build in a sandbox"], counts)
	return counts
}

// records reads a bucket.
func (c *chaos) records(bucket string) map[string][]byte {
	all := map[string][]byte{}
	kv, err := c.js.KeyValue(c.t.Context(), bucket)
	if err != nil {
		c.t.Fatal(err)
	}
	keys, err := kv.ListKeys(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for key := range keys.Keys() {
		entry, err := kv.Get(c.t.Context(), key)
		if err != nil {
			c.t.Fatalf("read %s of %s: %v", key, bucket, err)
		}
		all[key] = entry.Value()
	}
	return all
}

// digest is where a reference is in the registry, whether it names that or not.
func (c *chaos) digest(ref string) (string, error) {
	if !strings.HasPrefix(ref, c.registry.host) {
		ref = c.registry.host + "/" + strings.TrimPrefix(ref, ".")
	}
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	desc, err := remote.Head(parsed, remote.WithContext(ctx))
	if err != nil {
		return "", err
	}
	return desc.Digest.String(), nil
}

// checkLeftovers: no build root is left.
func (c *chaos) checkLeftovers() {
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
}
