package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"sigs.k8s.io/yaml"
)

func TestWheelRecordsEveryFile(t *testing.T) {
	t.Parallel()
	for _, w := range demoWheels() {
		data, err := w.bytes()
		if err != nil {
			t.Fatal(err)
		}
		archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatalf("%s is no zip archive: %v", w.filename(), err)
		}
		info := w.module() + "-" + w.version + ".dist-info"
		var want strings.Builder
		record := ""
		for _, f := range archive.File {
			text := read(t, archive, f.Name)
			if f.Name == info+"/RECORD" {
				record = text
				fmt.Fprintf(&want, "%s,,\n", f.Name)
				continue
			}
			sum := sha256.Sum256([]byte(text))
			fmt.Fprintf(&want, "%s,sha256=%s,%d\n", f.Name, base64.RawURLEncoding.EncodeToString(sum[:]), len(text))
		}
		if diff := cmp.Diff(want.String(), record); diff != "" {
			t.Errorf("RECORD of %s (-want +got):\n%s", w.filename(), diff)
		}
		if got := read(t, archive, info+"/METADATA"); !strings.Contains(got, "\nName: "+w.name+"\nVersion: "+w.version+"\n") {
			t.Errorf("METADATA = %q", got)
		}
		if again, _ := w.bytes(); !bytes.Equal(again, data) {
			t.Errorf("%s differs when it is made again", w.filename())
		}
	}
}

func read(t *testing.T, archive *zip.Reader, file string) string {
	t.Helper()
	f, err := archive.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestIndexLeadsToEveryWheelWithItsDigest(t *testing.T) {
	t.Parallel()
	handler, err := newIndex(demoWheels())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	found := 0
	for _, project := range links(t, server.URL+"/simple/") {
		for _, file := range links(t, server.URL+project) {
			address, err := url.Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			data := get(t, server.URL+address.Path)
			if got := fmt.Sprintf("sha256=%x", sha256.Sum256([]byte(data))); got != address.Fragment {
				t.Errorf("%s has %s, the index says %s", path.Base(address.Path), got, address.Fragment)
			}
			found++
		}
	}
	if want := len(demoWheels()); found != want {
		t.Errorf("the index leads to %d wheels, want %d", found, want)
	}
	if status, _ := ask(t, server.URL+"/simple/humanize/"); status != http.StatusNotFound {
		t.Errorf("unknown project: status %d, want 404", status)
	}
}

func links(t *testing.T, page string) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile(`<a href="([^"]+)">`).FindAllStringSubmatch(get(t, page), -1) {
		all = append(all, m[1])
	}
	return all
}

func get(t *testing.T, address string) string {
	t.Helper()
	status, body := ask(t, address)
	if status != http.StatusOK {
		t.Fatalf("GET %s = %d %s", address, status, body)
	}
	return body
}

func ask(t *testing.T, address string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestDerivedFunctionDiffersInBaseAndRequirementsOnly(t *testing.T) {
	t.Parallel()
	original, err := os.ReadFile("../../examples/trainer/function.yaml")
	if err != nil {
		t.Fatal(err)
	}
	derived, err := derive(original, "127.0.0.1:5000/base:1", "a==1,b==2")
	if err != nil {
		t.Fatal(err)
	}
	build := func(text []byte) map[string]any {
		var doc struct {
			Spec struct{ Build map[string]any }
		}
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		return doc.Spec.Build
	}
	want := build(original)
	if len(want["commands"].([]any)) != 3 || len(want["requirements"].([]any)) != 2 {
		t.Errorf("the example has not three commands and two requirements: %v", want)
	}
	want["base_image"], want["requirements"] = "127.0.0.1:5000/base:1", []any{"a==1", "b==2"}
	if diff := cmp.Diff(want, build(derived)); diff != "" {
		t.Errorf("spec.build (-want +got):\n%s", diff)
	}
}

func TestFieldFollowsKeys(t *testing.T) {
	t.Parallel()
	const doc = `{"digest": "sha256:1", "timings": {"build_ms": 1234567}}`
	for key, want := range map[string]string{"digest": "sha256:1", "timings.build_ms": "1234567", "nope": "", "digest.x": ""} {
		got, err := field(strings.NewReader(doc), key)
		if want == "" {
			if err == nil {
				t.Errorf("field(%q) = %v, want an error", key, got)
			}
			continue
		}
		if fmt.Sprint(got) != want || err != nil {
			t.Errorf("field(%q) = %v, %v, want %s", key, got, err, want)
		}
	}
}

func TestNamesOfAnImageStayInItsRoot(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../.."},
		{Name: "out/evil", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	inner := filepath.Join(dir, "a", "rootfs")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(inner)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unpack(root, tar.NewReader(&buf)); err == nil {
		t.Error("a file was written through a link that leads outside")
	}
	if _, err := os.Stat(filepath.Join(dir, "evil")); err == nil {
		t.Error("a file is outside of the root")
	}
}

func TestPushedImageRunsWithoutTheMachinesRoot(t *testing.T) {
	t.Parallel()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	if _, err := ociRuntime(); err != nil {
		missing = append(missing, "runc")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		missing = append(missing, "/bin/busybox (apt-get install busybox-static)")
	} else if out, _ := exec.CommandContext(t.Context(), "ldd", "/bin/busybox").CombinedOutput(); strings.Contains(string(out), "libc.so") {
		missing = append(missing, "a static /bin/busybox (apt-get install busybox-static)")
	}
	if len(missing) > 0 {
		t.Skipf("SKIPPED: running an image needs %s (make deps)", strings.Join(missing, ", "))
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/busybox:1"
	var out bytes.Buffer
	if err := runPushBusybox(t.Context(), []string{ref}, &out); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^sha256:[0-9a-f]{64} \d+\n$`).MatchString(out.String()) {
		t.Errorf("push-busybox printed %q", out.String())
	}
	out.Reset()
	script := `id -u; cat /proc/self/uid_map; touch /x 2>/dev/null || echo read-only; ls /sys/class/net 2>/dev/null | wc -l`
	if err := runImage(t.Context(), []string{ref, "sh", "-c", script}, &out); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(strings.Fields(out.String()), " "), "0 0 100000 65536 read-only 0"; got != want {
		t.Errorf("the container printed %q, want %q", got, want)
	}
	if err := runImage(t.Context(), []string{ref, "sh", "-c", "exit 3"}, io.Discard); err == nil {
		t.Error("a command that fails is no error")
	}
}

func TestUsageNamesEveryCommand(t *testing.T) {
	t.Parallel()
	err := dispatch(t.Context(), []string{"nope"}, io.Discard)
	if err == nil {
		t.Fatal("an unknown command is no error")
	}
	for name := range commands() {
		if !strings.Contains(err.Error(), "\n  "+name+" ") {
			t.Errorf("usage does not name %s", name)
		}
	}
}

func TestSizeRefusesAnotherOutcome(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	repository := strings.TrimPrefix(server.URL, "http://") + "/trainer"
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(make([]byte, 1024))), nil })
	if err != nil {
		t.Fatal(err)
	}
	var pushed bytes.Buffer
	if err := push(t.Context(), repository+":1", layer, &pushed); err != nil {
		t.Fatal(err)
	}
	digest, _, _ := strings.Cut(pushed.String(), " ")
	answer := fmt.Sprintf(`{"state": "completed", "completed": {"outcome": "reused", "image_ref": %q}}`, repository+"@"+digest)
	var out bytes.Buffer
	if err := size(t.Context(), strings.NewReader(answer), "reused", &out); err != nil {
		t.Fatal(err)
	}
	if want := "MB compressed, in 1 layers"; !strings.Contains(out.String(), want) {
		t.Errorf("size printed %q, want %q in it", out.String(), want)
	}
	for _, other := range []string{answer, `{"state": "failed"}`} {
		if err := size(t.Context(), strings.NewReader(other), "built", io.Discard); err == nil {
			t.Errorf("%s passes for a built image", other)
		}
	}
}
