package natsbus_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/events/natsbus"
)

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func newContexts(t *testing.T) (*natsbus.ContextStore, jetstream.ObjectStore) {
	t.Helper()
	bus := newBus(t, natsbus.Topology{})
	store, err := bus.Contexts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	objects, err := bus.JetStream().ObjectStore(t.Context(), "KILN_CONTEXT")
	if err != nil {
		t.Fatal(err)
	}
	return store, objects
}

func TestContextsComeBackByDigest(t *testing.T) {
	t.Parallel()
	store, _ := newContexts(t)
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
	for name, content := range map[string][]byte{"large": large, "small": []byte("x"), "of whole chunks": large[:256<<10], "empty": {}} {
		// One byte at a time: messages are filled all the same.
		if err := store.Put(t.Context(), digestOf(content), iotest.HalfReader(bytes.NewReader(content))); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		r, err := store.Open(t.Context(), digestOf(content))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: read %d bytes of %d, %v", name, len(got), len(content), err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
	if _, err := store.Open(t.Context(), digestOf([]byte("never stored"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(missing) = %v", err)
	}
}

func TestContextsAreStoredOnce(t *testing.T) {
	t.Parallel()
	store, objects := newContexts(t)
	content := bytes.Repeat([]byte("x"), 300<<10)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if err := store.Put(t.Context(), digestOf(content), bytes.NewReader(content)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := store.Put(t.Context(), digestOf(content), iotest.ErrReader(errors.New("must not be read"))); err != nil {
		t.Errorf("again: %v", err)
	}
	info, err := objects.GetInfo(t.Context(), digestOf(content))
	if err != nil || info.Chunks != 3 || info.Size != uint64(len(content)) {
		t.Errorf("stored as %+v, %v; want 3 chunks", info, err)
	}
}

func TestForgedContextsAreNeitherStoredNorRead(t *testing.T) {
	t.Parallel()
	store, objects := newContexts(t)
	digest := digestOf([]byte("original"))
	if err := store.Put(t.Context(), digest, strings.NewReader("forged")); !errors.Is(err, natsbus.ErrDigest) {
		t.Errorf("Put(forged) = %v", err)
	}
	if _, err := store.Open(t.Context(), digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it Open() = %v", err)
	}
	if err := store.Put(t.Context(), "../"+digest, strings.NewReader("original")); err == nil {
		t.Error("a strange digest was accepted")
	}
	if err := store.Put(t.Context(), digest, io.MultiReader(strings.NewReader("orig"), iotest.ErrReader(io.ErrClosedPipe))); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Put(broken reader) = %v", err)
	}
	if _, err := objects.PutBytes(t.Context(), digest, []byte("forged")); err != nil {
		t.Fatal(err)
	}
	r, err := store.Open(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if raw, err := io.ReadAll(r); !errors.Is(err, natsbus.ErrDigest) {
		t.Errorf("read %q, %v", raw, err)
	}
	// What was forged is put right.
	if err := store.Put(t.Context(), digest, strings.NewReader("original")); err != nil {
		t.Error(err)
	}
}

func TestContextsNeedProvisioning(t *testing.T) {
	t.Parallel()
	bus, err := natsbus.New(connect(t, startServer(t, nil)), natsbus.Topology{Prefix: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = bus.Contexts(t.Context())
	for _, want := range []string{"ACME_KILN_CONTEXT", "kiln provision"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
