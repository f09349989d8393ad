package registry

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/builder"
)

func TestResolveReturnsDigestAndSize(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/base:1", img)
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	want := builder.Image{Ref: s.host + "/base:1", Digest: digestOf(t, img), Size: manifest.Layers[0].Size + manifest.Layers[1].Size}
	r := newRegistry(t, Config{})
	for _, ref := range []string{want.Ref, s.host + "/base@" + want.Digest, s.host + "/base:1@" + want.Digest} {
		want.Ref = ref
		got, err := r.Resolve(t.Context(), ref, "linux/amd64")
		if err != nil || got != want {
			t.Errorf("Resolve(%s) = %+v, %v, want %+v", ref, got, err, want)
		}
	}
}

func TestResolvePicksThePlatform(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	idx, images := index(t, "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "windows/amd64")
	push(t, s.host+"/multi:1", idx)
	r := newRegistry(t, Config{})
	for platform, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/arm64": "linux/arm64", "linux/arm64/v8": "linux/arm64",
		"linux/arm/v7": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "linux/arm": "linux/arm/v6", "windows/amd64": "windows/amd64",
	} {
		for _, ref := range []string{s.host + "/multi:1", s.host + "/multi@" + digestOf(t, idx)} {
			got, err := r.Resolve(t.Context(), ref, platform)
			if err != nil || got.Digest != digestOf(t, images[want]) || got.Size == 0 {
				t.Errorf("Resolve(%s, %s) = %+v, %v, want the image of %s", ref, platform, got, err, want)
			}
		}
	}
	_, err := r.Resolve(t.Context(), s.host+"/multi:1", "linux/s390x")
	wantKind(t, err, builder.KindBaseNotFound)
	for _, part := range []string{"linux/s390x", "linux/amd64", "linux/arm64"} {
		if err != nil && !strings.Contains(err.Error(), part) {
			t.Errorf("error does not name %s: %v", part, err)
		}
	}
}

func TestResolveRefusesASingleImageOfAnotherPlatform(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/base:1", image(t, "arm64"))
	_, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
	wantKind(t, err, builder.KindBaseNotFound)
	if err != nil && !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("error does not say what the image is for: %v", err)
	}
}

func TestResolveRefusesWhatIsNoImage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.example.chart+json")
		_, _ = w.Write([]byte(`{}`))
		return true
	})
	_, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/chart:1", "linux/amd64")
	wantKind(t, err, builder.KindBaseNotFound)
}

func TestResolveTakesMediaTypesWithParameters(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	push(t, s.host+"/base:1", img)
	s.set(only(http.MethodGet, "/manifests/", func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", string(types.DockerManifestSchema2)+"; charset=utf-8")
		_, _ = w.Write(raw)
		return true
	}))
	got, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
	if err != nil || got.Digest != digestOf(t, img) {
		t.Errorf("Resolve = %+v, %v", got, err)
	}
}

func TestResolveSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	push(t, s.host+"/team/base:1", image(t, "amd64"))
	r := newRegistry(t, Config{})
	for ref, parts := range map[string][]string{
		s.host + "/team/base:2":                                 {s.host, "team/base", "2", "MANIFEST_UNKNOWN"},
		s.host + "/team/none:1":                                 {s.host, "team/none", "NAME_UNKNOWN"},
		s.host + "/team/base@sha256:" + strings.Repeat("0", 64): {"team/base", "sha256:000"},
	} {
		_, err := r.Resolve(t.Context(), ref, "linux/amd64")
		wantKind(t, err, builder.KindBaseNotFound)
		for _, part := range parts {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("error for %s does not name %q: %v", ref, part, err)
			}
		}
	}
}

func TestResolveRefusesInvalidInput(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	for _, in := range [][2]string{
		{"UPPER/case", "linux/amd64"}, {"", "linux/amd64"}, {"base\nRUN", "linux/amd64"}, {"base:1", "linux"}, {"base:1", ""}, {"base:1", "a/b/c/d"},
	} {
		_, err := r.Resolve(t.Context(), in[0], in[1])
		wantKind(t, err, builder.KindInvalidRequest)
	}
}

func TestResolveCountsOnePullForEachImage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	first, second := image(t, "amd64"), image(t, "amd64")
	push(t, s.host+"/base:1", first)
	r := newRegistry(t, Config{})
	resolve := func(want v1.Image) {
		t.Helper()
		if got, err := r.Resolve(t.Context(), s.host+"/base:1", "linux/amd64"); err != nil || got.Digest != digestOf(t, want) {
			t.Fatalf("Resolve = %+v, %v", got, err)
		}
	}
	resolve(first)
	s.count("GET manifests")
	s.count("GET ping")
	for range 5 {
		resolve(first)
	}
	if n := s.count("GET manifests"); n != 0 {
		t.Errorf("an image that is known was pulled %d times", n)
	}
	if n := s.count("GET ping"); n != 0 {
		t.Errorf("the registry was greeted %d times again", n)
	}
	push(t, s.host+"/base:1", second)
	resolve(second)
}

func TestResolveAnswersByStatus(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		behave func(http.ResponseWriter, *http.Request) bool
		want   builder.Kind
	}{
		"401":            {answer(http.StatusUnauthorized, "UNAUTHORIZED"), builder.KindPullDenied},
		"403":            {answer(http.StatusForbidden, "DENIED"), builder.KindPullDenied},
		"429":            {answer(http.StatusTooManyRequests, "TOOMANYREQUESTS"), builder.KindUnavailable},
		"500":            {answer(http.StatusInternalServerError, "UNKNOWN"), builder.KindUnavailable},
		"503":            {answer(http.StatusServiceUnavailable, "UNAVAILABLE"), builder.KindUnavailable},
		"no registry":    {answer(http.StatusNotFound, "PAGE_NOT_FOUND"), builder.KindUnavailable},
		"403 manifest":   {only(http.MethodGet, "/manifests/", answer(http.StatusForbidden, "DENIED")), builder.KindPullDenied},
		"404 blob":       {only(http.MethodGet, "/blobs/", answer(http.StatusNotFound, "BLOB_UNKNOWN")), builder.KindUnavailable},
		"HEAD is broken": {only(http.MethodHead, "", answer(http.StatusMethodNotAllowed, "UNSUPPORTED")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			push(t, s.host+"/base:1", image(t, "amd64"))
			s.set(tc.behave)
			_, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantKind(t, err, tc.want)
		})
	}
}

func TestFlakesAreRetried(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/base:1", img)
	var failures atomic.Int32
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		return failures.Add(1) <= 2 && answer(http.StatusBadGateway, "UNKNOWN")(w, r)
	})
	got, err := newRegistry(t, Config{}).Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
	if err != nil || got.Digest != digestOf(t, img) {
		t.Errorf("Resolve = %+v, %v", got, err)
	}
}

func TestRegistryThatIsDownAndComesBack(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/base:1", img)
	r := newRegistry(t, Config{})
	s.set(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	_, err := r.Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
	wantKind(t, err, builder.KindUnavailable)
	s.set(nil)
	if _, err = r.Resolve(t.Context(), s.host+"/base:1", "linux/amd64"); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	s.Close()
	wantKind(t, r.Verify(t.Context(), s.host+"/base@"+digestOf(t, img)), builder.KindUnavailable)
	if err := r.Verify(t.Context(), s.host+"/base@"+digestOf(t, img)); errors.Is(err, builder.ErrImageMissing) {
		t.Errorf("a registry that is down was taken for a missing image: %v", err)
	}
}

func TestSlowRegistryIsBounded(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	})
	r := newRegistry(t, Config{Timeout: 100 * time.Millisecond})
	_, err := r.Resolve(t.Context(), s.host+"/base:1", "linux/amd64")
	wantKind(t, err, builder.KindUnavailable)
	if err != nil && !strings.Contains(err.Error(), "longer than 100ms") {
		t.Errorf("error does not name the limit: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(builder.ErrShutdown)
	if err := r.Verify(ctx, s.host+"/base@sha256:"+strings.Repeat("0", 64)); !errors.Is(err, builder.ErrShutdown) {
		t.Errorf("error = %v, want the cause of the cancel in it", err)
	}
}

func TestCanceledOperationDoesNotSpoilOthers(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/base:1", img)
	var greeted atomic.Bool
	entered := make(chan struct{})
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if !greeted.CompareAndSwap(false, true) {
			return false
		}
		close(entered)
		<-r.Context().Done()
		return true
	})
	r := newRegistry(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	resolve := func(ctx context.Context) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := r.Resolve(ctx, s.host+"/base:1", "linux/amd64")
			done <- err
		}()
		return done
	}
	first := resolve(ctx)
	<-entered
	second := resolve(t.Context())
	cancel()
	if err := <-first; err == nil {
		t.Error("the canceled operation succeeded")
	}
	if err := <-second; err != nil {
		t.Errorf("an operation failed because of another's cancel: %v", err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img := image(t, "amd64")
	push(t, s.host+"/ml/x:1", img)
	ref := s.host + "/ml/x@" + digestOf(t, img)
	missing := s.host + "/ml/x@sha256:" + strings.Repeat("0", 64)
	r := newRegistry(t, Config{})
	if err := r.Verify(t.Context(), ref); err != nil {
		t.Error(err)
	}
	err := r.Verify(t.Context(), missing)
	wantKind(t, err, builder.KindUnavailable)
	if !errors.Is(err, builder.ErrImageMissing) {
		t.Errorf("error = %v, want ErrImageMissing", err)
	}
	wantKind(t, r.Verify(t.Context(), s.host+"/ml/x:1"), builder.KindInvalidRequest)
	wantKind(t, r.Verify(t.Context(), s.host+"/ml/x@"), builder.KindInvalidRequest)

	for status, want := range map[int]builder.Kind{401: builder.KindPullDenied, 403: builder.KindPullDenied, 500: builder.KindUnavailable, 429: builder.KindUnavailable} {
		s.set(only(http.MethodHead, "", answer(status, "X")))
		if err := r.Verify(t.Context(), ref); err != nil {
			t.Errorf("HEAD answers %d, GET is fine: %v", status, err)
		}
		s.set(answer(status, "X"))
		err := r.Verify(t.Context(), ref)
		wantKind(t, err, want)
		if errors.Is(err, builder.ErrImageMissing) {
			t.Errorf("answer %d was taken for a missing image", status)
		}
	}
	s.set(answer(http.StatusNotFound, "PAGE_NOT_FOUND"))
	if err := newRegistry(t, Config{}).Verify(t.Context(), ref); err == nil || errors.Is(err, builder.ErrImageMissing) {
		t.Errorf("a host that is no registry: %v, want an error that leaves open whether the image exists", err)
	}
}

func TestVerifySeesAnotherDigest(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	img, other := image(t, "amd64"), image(t, "amd64")
	push(t, s.host+"/x:1", img)
	raw, err := other.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", string(types.DockerManifestSchema2))
		_, _ = w.Write(raw)
		return true
	})
	err = newRegistry(t, Config{}).Verify(t.Context(), s.host+"/x@"+digestOf(t, img))
	wantKind(t, err, builder.KindUnavailable)
}
