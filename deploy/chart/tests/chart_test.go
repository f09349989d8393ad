// Package tests renders and lints the chart with Helm's own code. It is a module of its
// own, so that Helm's dependencies never meet Kiln's.
package tests

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite golden files and deploy/manifests")

const chartDir = ".."

// render returns the chart's files by name with the values, as `helm template kiln
// --namespace kiln` prints them.
func render(values map[string]any) (map[string]string, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "kiln", Namespace: "kiln", IsInstall: true, Revision: 1}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	// Strict finds names of values that there are not.
	files, err := engine.Engine{Strict: true}.RenderWithContext(context.Background(), chart, all)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for name, text := range files {
		if text = strings.TrimSpace(text); text != "" && !strings.HasPrefix(path.Base(name), "_") {
			out[path.Base(name)] = text + "\n"
		}
	}
	return out, nil
}

// cases are the values of testdata, by name.
func cases(t *testing.T) map[string]map[string]any {
	t.Helper()
	files, err := filepath.Glob("testdata/*/values.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d files of values (%v)", len(files), err)
	}
	all := map[string]map[string]any{"default": {}}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var values map[string]any
		if err := yaml.UnmarshalStrict(raw, &values); err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(filepath.Dir(file))] = values
	}
	return all
}

// compare holds a folder's files and the rendered ones together.
func compare(t *testing.T, dir string, rendered map[string]string, keep ...string) {
	t.Helper()
	if *update {
		old, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
		for _, file := range old {
			if !slices.Contains(keep, filepath.Base(file)) {
				_ = os.Remove(file)
			}
		}
		for name, text := range rendered {
			if err := errors.Join(os.MkdirAll(dir, 0o750), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if slices.Contains(keep, entry.Name()) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[entry.Name()] = string(raw)
	}
	if diff := cmp.Diff(got, rendered); diff != "" {
		t.Errorf("%s: run make manifests and look at what changed (-file +rendered):\n%s", dir, diff)
	}
}

func TestRenderedFilesAreAsRecorded(t *testing.T) {
	t.Parallel()
	for name, values := range cases(t) {
		if name == "default" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rendered, err := render(values)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name), rendered, "values.yaml")
		})
	}
}

// byHelm is what says that Helm manages an object.
var byHelm = regexp.MustCompile(`(?m)^ *(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n`)

func TestManifestsAreTheChartWithItsDefaults(t *testing.T) {
	t.Parallel()
	rendered, err := render(nil)
	if err != nil {
		t.Fatal(err)
	}
	delete(rendered, "NOTES.txt")
	for name, text := range rendered {
		rendered[name] = byHelm.ReplaceAllString(text, "")
	}
	compare(t, "../../manifests", rendered)
}

// objects decodes what kubectl would send. A field that the API does not have is an
// error.
func objects(t *testing.T, files map[string]string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(known(t), serializer.EnableStrict).UniversalDeserializer()
	var all []runtime.Object
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		documents := k8syaml.NewYAMLReader(bufio.NewReader(strings.NewReader(files[name])))
		for {
			raw, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			object, _, err := decoder.Decode(raw, nil, nil)
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, raw)
				continue
			}
			all = append(all, object)
		}
	}
	return all
}

func TestEveryObjectIsOneThatTheAPITakes(t *testing.T) {
	t.Parallel()
	for name, values := range cases(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rendered, err := render(values)
			if err != nil {
				t.Fatal(err)
			}
			if all := objects(t, rendered); len(all) < 3 {
				t.Errorf("%d objects", len(all))
			}
		})
	}
}

func TestUnknownFieldsOfObjectsAreFound(t *testing.T) {
	t.Parallel()
	decoder := serializer.NewCodecFactory(known(t), serializer.EnableStrict).UniversalDeserializer()
	for _, text := range []string{
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndate: {}\n",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {template: {spec: {containers: [{name: a, imagePolicy: x}]}}}\n",
		"apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nspec: {trigger: []}\n",
		"apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nspec: {endpoint: []}\n",
		"apiVersion: v1\nkind: Unknown\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: x, name: y}\n",
	} {
		if _, _, err := decoder.Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("accepted:\n%s", text)
		}
	}
}

func TestLintFindsNothing(t *testing.T) {
	t.Parallel()
	for name, values := range cases(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, message := range lint.RunAll(chartDir, values, "kiln").Messages {
				if message.Severity > support.InfoSev {
					t.Error(message)
				}
			}
		})
	}
}

func TestMistakesInValuesAreNamed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"natss: {}":                                                 "natss",
		"nats: {url: localhost:4222}":                               "/nats/url",
		"nats: {url: 'nats://u:p@host'}":                            "/nats/url",
		"nats: {keys: {creds: x}}":                                  "creds",
		"nats: {keys: {ca: ca.crt}}":                                "nats.secret",
		"builds: {nats: {keys: {user: user}}}":                      "builds.nats.secret",
		"registry: {url: https://registry.example.com}":             "/registry/url",
		"worker: {slots: 0}":                                        "/worker/slots",
		"worker: {softStopSeconds: 30s}":                            "/worker/softStopSeconds",
		"provision: {replicas: 2}":                                  "/provision/replicas",
		"autoscaling: {enabled: true, jetstream: {enabled: false}}": "autoscaling",
		"autoscaling: {enabled: true, minReplicas: 0, jetstream: {enabled: false}, prometheus: {enabled: true}}": "minReplicas",
		"builds: {createNamespace: true}":      "builds.namespace",
		"pip: {ca: {configMap: a, secret: b}}": "pip-ca",
		"projects: {secrets: {'../etc': x}}":   "../etc",
	} {
		var values map[string]any
		if err := yaml.UnmarshalStrict([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		if _, err := render(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error that names %s", text, err, want)
		}
	}
}
