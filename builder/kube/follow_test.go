package kube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestBrokenLogStreamsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	for _, breakAfter := range []int{0, 130, 250, 1000} {
		t.Run(strconv.Itoa(breakAfter), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var want strings.Builder
				for i := range 3000 {
					// Lines that are equal must all come.
					fmt.Fprintf(&want, "line %d\n", i/3)
				}
				c := newTestCluster(t, func(ctx context.Context, p *fakePod) {
					if _, ok := p.prepare(ctx); !ok {
						return
					}
					for i := range 3000 {
						p.log(containerKaniko, fmt.Sprintf("line %d\n", i/3))
						if i%10 == 0 {
							time.Sleep(200 * time.Millisecond)
						}
					}
					p.log(containerKaniko, "unfinished")
					p.exit(containerKaniko, 0, "Completed", someDigest)
				})
				c.logs.breakAfter = breakAfter
				var logs strings.Builder
				if _, err := c.engine(t, testConfig()).Run(t.Context(), testPlan(), &logs); err != nil {
					t.Fatalf("Run: %v", err)
				}
				var got strings.Builder
				for line := range strings.Lines(logs.String()) {
					if strings.HasPrefix(line, "line ") {
						got.WriteString(line)
					}
				}
				if diff := cmp.Diff(want.String(), got.String()); diff != "" {
					t.Errorf("lines (-want +got):\n%.2000s", diff)
				}
				if !strings.HasSuffix(logs.String(), "\nunfinished\n") {
					t.Errorf("the end is missing: …%q", logs.String()[max(0, len(logs.String())-100):])
				}
				if breakAfter > 0 && c.logs.opened < 3000/breakAfter {
					t.Errorf("only %d streams were opened", c.logs.opened)
				}
			})
		})
	}
}

func TestLinesThatCameAreKnownAgain(t *testing.T) {
	t.Parallel()
	const (
		first  = "2026-01-02T03:04:05.100000000Z a\n"
		twice  = "2026-01-02T03:04:05.200000000Z b\n"
		late   = "2026-01-02T03:04:05.150000000Z c\n"
		second = "2026-01-02T03:04:06.000000001Z d\n"
		fourth = "2026-01-02T03:04:08Z e\n"
	)
	p := newPosition()
	read := func(lines ...string) (fresh []string) {
		for _, line := range lines {
			if text, isNew := p.next([]byte(line)); isNew {
				fresh = append(fresh, strings.TrimSuffix(string(text), "\n"))
			}
		}
		return fresh
	}
	if since := p.resume(); !since.IsZero() {
		t.Errorf("the first stream starts at %s", since)
	}
	want := []string{"a", "b", "b", "c", "d", "no time stamp"}
	if diff := cmp.Diff(want, read(first, twice, twice, late, second, "no time stamp\n")); diff != "" {
		t.Errorf("first stream (-want +got):\n%s", diff)
	}
	if since := p.resume(); since.Format(time.RFC3339Nano) != "2026-01-02T03:04:05Z" {
		t.Errorf("the second stream starts at %s", since)
	}
	// The third b was written while nobody listened, with the same time stamp.
	if diff := cmp.Diff([]string{"b", "e"}, read(first, twice, twice, twice, late, second, fourth)); diff != "" {
		t.Errorf("second stream (-want +got):\n%s", diff)
	}
	if since := p.resume(); since.Format(time.RFC3339Nano) != "2026-01-02T03:04:07Z" {
		t.Errorf("the third stream starts at %s", since)
	}
	if len(p.lines) != 1 {
		t.Errorf("%d seconds are remembered, want 1", len(p.lines))
	}
}

// streams is a log endpoint that gives one text after the other.
type streams struct {
	mu    sync.Mutex
	texts []string
}

func (s *streams) Stream(context.Context, string, string, time.Time) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.texts[0]
	s.texts = s.texts[1:]
	return io.NopCloser(strings.NewReader(text)), nil
}

func TestVeryLongLinesAreBounded(t *testing.T) {
	t.Parallel()
	long := "2026-01-02T03:04:05Z " + strings.Repeat("x", 3*maxLine)
	var out strings.Builder
	f := &follower{containers: []string{containerContext, containerKaniko}, logs: &streams{texts: []string{long, long + "\n2026-01-02T03:04:05Z end\n"}}, out: func(string) io.Writer { return &out }}
	at := newPosition()
	for range 2 {
		if _, err := f.copy(t.Context(), "p", containerKaniko, at, false); err != nil {
			t.Fatal(err)
		}
	}
	if want := strings.Repeat("x", 3*maxLine) + "\nend\n"; out.String() != want {
		t.Errorf("got %d bytes that end in %q, want %d", out.Len(), out.String()[max(0, out.Len()-20):], len(want))
	}
}

// apiServer is the log endpoint of a real API server as HTTP sees it.
func apiServer(t *testing.T, handle http.HandlerFunc) kubernetes.Interface {
	t.Helper()
	srv := httptest.NewServer(handle)
	t.Cleanup(srv.Close)
	client, err := Connect(ClientConfig{REST: &rest.Config{Host: srv.URL}})
	if err != nil {
		t.Fatal(err)
	}
	return client.Interface
}

func TestLogEndpointIsAskedAndResumed(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	client := apiServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path+"?"+r.URL.Query().Encode())
		n := len(asked)
		mu.Unlock()
		switch n {
		case 1:
			_, _ = io.WriteString(w, "2026-01-02T03:04:05.5Z one\n2026-01-02T03:04:06.5Z two\n2026-01-02T03:04:0")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusInternalServerError)
		case 3:
			_, _ = io.WriteString(w, "2026-01-02T03:04:05.5Z one\n2026-01-02T03:04:06.5Z two\n2026-01-02T03:04:07.5Z three\n")
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}
	})
	pod := &corev1.Pod{Status: corev1.PodStatus{
		InitContainerStatuses: []corev1.ContainerStatus{{Name: containerContext, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}},
		ContainerStatuses:     []corev1.ContainerStatus{{Name: containerKaniko, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
	}}
	pod.Name = "kiln-x-1-abcde"
	var out strings.Builder
	f := &follower{
		containers: []string{containerContext, containerKaniko},
		logs:       podLogs{client: client, namespace: "builds"}, pod: func() *corev1.Pod { return pod }, changes: make(chan struct{}),
		out: func(container string) io.Writer { return tagged{&out, container} },
	}
	f.run(t.Context())
	if want := "context: one\ncontext: two\ncontext: three\n"; out.String() != want {
		t.Errorf("log is %q, want %q", out.String(), want)
	}
	path := "/api/v1/namespaces/builds/pods/kiln-x-1-abcde/log?container=context&follow=true"
	resumed := path + "&sinceTime=2026-01-02T03%3A04%3A05Z&timestamps=true"
	want := []string{path + "&timestamps=true", resumed, resumed, strings.Replace(path, "=context", "=kaniko", 1) + "&timestamps=true"}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// tagged names the container of every line.
type tagged struct {
	out  *strings.Builder
	name string
}

func (t tagged) Write(p []byte) (int, error) {
	t.out.WriteString(t.name + ": " + string(p))
	return len(p), nil
}
