package registry

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
)

func TestTagInTheSameRepository(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/ml/x:kiln-1", img)
	push(t, s.host+"/ml/x:latest", image(t, "amd64"))
	r := newRegistry(t, Config{})
	s.count("POST blobs")
	for range 2 {
		if err := r.Tag(t.Context(), s.host+"/ml/x@"+digestOf(t, img), s.host+"/ml/x:latest"); err != nil {
			t.Fatal(err)
		}
		if got := headDigest(t, s.host+"/ml/x:latest"); got != digestOf(t, img) {
			t.Errorf("the tag names %s, want %s", got, digestOf(t, img))
		}
	}
	if n := s.count("POST blobs"); n != 0 {
		t.Errorf("%d blobs were uploaded for a tag", n)
	}
}

// missing makes the repository other/y have no blobs: the in-memory registry shows
// those of all repositories.
func missing(w http.ResponseWriter, r *http.Request) bool {
	return only(http.MethodHead, "/other/y/blobs/", answer(http.StatusNotFound, "BLOB_UNKNOWN"))(w, r)
}

func TestTagCopiesAcrossRepositoriesByMounting(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/ml/x:kiln-1", img)
	var mounts atomic.Int32
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if missing(w, r) {
			return true
		}
		if r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" && r.URL.Query().Get("from") == "ml/x" {
			mounts.Add(1)
		}
		return false
	})
	r := newRegistry(t, Config{})
	for range 2 {
		if err := r.Tag(t.Context(), s.host+"/ml/x@"+digestOf(t, img), s.host+"/other/y:1"); err != nil {
			t.Fatal(err)
		}
	}
	if mounts.Load() == 0 {
		t.Error("no layer was mounted")
	}
	pullAll(t, s.host+"/other/y:1", digestOf(t, img))
}

func TestTagCopiesAcrossRegistries(t *testing.T) {
	t.Parallel()
	from, to := newServer(t), newServer(t)
	img := image(t, "amd64")
	idx, _ := index(t, "linux/amd64", "linux/arm64")
	push(t, from.host+"/ml/x:1", img)
	push(t, from.host+"/ml/multi:1", idx)
	r := newRegistry(t, Config{})
	if err := r.Tag(t.Context(), from.host+"/ml/x@"+digestOf(t, img), to.host+"/ml/x:1"); err != nil {
		t.Fatal(err)
	}
	pullAll(t, to.host+"/ml/x:1", digestOf(t, img))
	if err := r.Tag(t.Context(), from.host+"/ml/multi@"+digestOf(t, idx), to.host+"/ml/multi:1"); err != nil {
		t.Fatal(err)
	}
	if got := headDigest(t, to.host+"/ml/multi:1"); got != digestOf(t, idx) {
		t.Errorf("the index has digest %s, want %s", got, digestOf(t, idx))
	}
	pullAll(t, to.host+"/ml/multi:1", "")
}

// pullAll reads every layer of an image; want is its digest, unless empty.
func pullAll(t *testing.T, ref, want string) {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	if got := digestOf(t, img); want != "" && got != want {
		t.Errorf("%s has digest %s, want %s", ref, got, want)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatalf("read layer of %s: %v", ref, err)
		}
		_ = content.Close()
	}
}

func TestTagAnswersByStatus(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		behave func(http.ResponseWriter, *http.Request) bool
		want   builder.Kind
	}{
		"401 on push":       {only(http.MethodPut, "/manifests/", answer(http.StatusUnauthorized, "UNAUTHORIZED")), builder.KindPushDenied},
		"403 on push":       {only(http.MethodPut, "/manifests/", answer(http.StatusForbidden, "DENIED")), builder.KindPushDenied},
		"403 on blob":       {only(http.MethodPost, "/blobs/", answer(http.StatusForbidden, "DENIED")), builder.KindPushDenied},
		"immutable tag":     {only(http.MethodPut, "/manifests/", answer(http.StatusConflict, "TAG_INVALID")), builder.KindPushDenied},
		"no such project":   {only(http.MethodPost, "/blobs/", answer(http.StatusNotFound, "NAME_UNKNOWN")), builder.KindPushDenied},
		"quota":             {only(http.MethodPut, "/manifests/", answer(http.StatusRequestEntityTooLarge, "DENIED")), builder.KindPushDenied},
		"lost upload":       {only(http.MethodPut, "/blobs/", answer(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")), builder.KindUnavailable},
		"500 on push":       {only(http.MethodPut, "/manifests/", answer(http.StatusInternalServerError, "UNKNOWN")), builder.KindUnavailable},
		"429 on push":       {only(http.MethodPut, "/manifests/", answer(http.StatusTooManyRequests, "TOOMANYREQUESTS")), builder.KindUnavailable},
		"403 on the source": {only(http.MethodGet, "/ml/x/manifests/", answer(http.StatusForbidden, "DENIED")), builder.KindPullDenied},
		"500 on the source": {only(http.MethodGet, "/ml/x/manifests/", answer(http.StatusInternalServerError, "UNKNOWN")), builder.KindUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			img := image(t, "amd64")
			push(t, s.host+"/ml/x:1", img)
			s.set(func(w http.ResponseWriter, r *http.Request) bool {
				if missing(w, r) {
					return true
				}
				if r.URL.Query().Get("mount") != "" {
					// No mounts, so that blobs are uploaded.
					r.URL.RawQuery = ""
				}
				return tc.behave(w, r)
			})
			err := newRegistry(t, Config{}).Tag(t.Context(), s.host+"/ml/x@"+digestOf(t, img), s.host+"/other/y:1")
			wantKind(t, err, tc.want)
		})
	}
}

func TestTagRetriesAFlakyPut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/ml/x:1", img)
	var failures atomic.Int32
	s.set(only(http.MethodPut, "/manifests/", func(w http.ResponseWriter, r *http.Request) bool {
		return failures.Add(1) <= 2 && answer(http.StatusInternalServerError, "UNKNOWN")(w, r)
	}))
	if err := newRegistry(t, Config{}).Tag(t.Context(), s.host+"/ml/x@"+digestOf(t, img), s.host+"/ml/x:2"); err != nil {
		t.Error(err)
	}
	if got := headDigest(t, s.host+"/ml/x:2"); got != digestOf(t, img) {
		t.Errorf("the tag names %s, want %s", got, digestOf(t, img))
	}
}

func TestTagOfAMissingImage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/ml/x:1", image(t, "amd64"))
	err := newRegistry(t, Config{}).Tag(t.Context(), s.host+"/ml/x@sha256:"+strings.Repeat("0", 64), s.host+"/ml/x:2")
	wantKind(t, err, builder.KindUnavailable)
	if !errors.Is(err, builder.ErrImageMissing) {
		t.Errorf("error = %v, want ErrImageMissing", err)
	}
}

func TestTagRefusesInvalidInput(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	valid := "127.0.0.1:1/x@sha256:" + strings.Repeat("0", 64)
	for _, in := range [][2]string{
		{"127.0.0.1:1/x:1", "127.0.0.1:1/x:2"}, {valid, valid}, {valid, "UPPER"}, {"", "127.0.0.1:1/x:2"}, {valid, "127.0.0.1:1/x:a b"},
	} {
		wantKind(t, r.Tag(t.Context(), in[0], in[1]), builder.KindInvalidRequest)
	}
}
