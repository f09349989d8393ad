package registry

import (
	"net/http"
	"testing"

	"kiln/builder"
)

func TestARepositoryIsAskedForUntilItMayBePushed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := newRegistry(t, Config{})
	s.set(only(http.MethodPost, "/blobs/uploads", answer(http.StatusForbidden, "DENIED")))
	for range 2 {
		wantKind(t, r.Prepare(t.Context(), s.host+"/x:1"), builder.KindPushDenied)
		if s.count("POST blobs") == 0 {
			t.Error("a refusal was remembered")
		}
	}
	s.set(nil)
	for _, tc := range []struct {
		tag   string
		asked int
	}{{"/x:1", 1}, {"/x:1", 0}, {"/x:2", 0}, {"/y:1", 1}} {
		if err := r.Prepare(t.Context(), s.host+tc.tag); err != nil {
			t.Errorf("Prepare(%s) = %v", tc.tag, err)
		}
		if n := s.count("POST blobs"); n != tc.asked {
			t.Errorf("Prepare(%s) asked %d times, want %d", tc.tag, n, tc.asked)
		}
	}
}
