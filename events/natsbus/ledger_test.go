package natsbus_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"kiln/events/natsbus"
)

func TestLedgerComparesAndSets(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	ledger, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ledger.Get(t.Context(), "build.a"); !errors.Is(err, natsbus.ErrNotFound) {
		t.Errorf("Get(missing) = %v", err)
	}
	first, err := ledger.Put(t.Context(), "build.a", []byte("1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("2"), 0); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("creating twice = %v, want ErrConflict", err)
	}
	second, err := ledger.Put(t.Context(), "build.a", []byte("2"), first)
	if err != nil || second <= first {
		t.Errorf("update = %d, %v", second, err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("3"), first); !errors.Is(err, natsbus.ErrConflict) {
		t.Errorf("update of an old revision = %v, want ErrConflict", err)
	}
	if value, revision, err := ledger.Get(t.Context(), "build.a"); string(value) != "2" || revision != second || err != nil {
		t.Errorf("Get() = %s, %d, %v", value, revision, err)
	}
	kv, err := bus.JetStream().KeyValue(t.Context(), "KILN_LEDGER")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), "build.a"); err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.Put(t.Context(), "build.a", []byte("4"), 0); err != nil {
		t.Errorf("creating a deleted key = %v", err)
	}
}

func TestOnlyOneOfManyClaimsWins(t *testing.T) {
	t.Parallel()
	bus := newBus(t, natsbus.Topology{})
	ledger, err := bus.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wins := make(chan int, 20)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if _, err := ledger.Put(t.Context(), "build.x", fmt.Append(nil, i), 0); err == nil {
				wins <- i
			} else if !errors.Is(err, natsbus.ErrConflict) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(wins) != 1 {
		t.Errorf("%d claims won", len(wins))
	}
}
