package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"kiln/cmd/cli"
)

// TestSettingsOfTheChartAreKilns reads every ConfigMap of the chart's tests as a worker
// does. An unknown setting is an error.
func TestSettingsOfTheChartAreKilns(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../deploy/chart/tests/testdata/*/configmap.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d ConfigMaps (%v)", len(files), err)
	}
	for _, file := range append(files, "../../deploy/manifests/configmap.yaml") {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			settings := filepath.Join(dir, "kiln.yaml")
			if err := os.WriteFile(settings, chartSettings(t, file, dir), 0o600); err != nil {
				t.Fatal(err)
			}
			var c commands
			parser, err := newParser(&c, cli.Streams{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse([]string{"--config", settings, "worker"}); err != nil {
				t.Fatal(err)
			}
			w := c.Worker
			if w.Engine != "kube" || w.Kube.Image == "" || w.Kube.Namespace == "" || !strings.HasPrefix(w.HTTPAddr, ":") {
				t.Errorf("worker = %+v", w)
			}
			if _, err := w.Kube.config(); err != nil {
				t.Error(err)
			}
		})
	}
}

// chartSettings returns the settings in a ConfigMap; the files that they name are made
// below dir.
func chartSettings(t *testing.T, file, dir string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var configMap struct{ Data map[string]string }
	if err := yaml.Unmarshal(raw, &configMap); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(configMap.Data["kiln.yaml"], "/etc/kiln", dir)
	for word := range strings.FieldsSeq(text) {
		if !strings.HasPrefix(word, dir) {
			continue
		}
		if filepath.Ext(word) == "" && !strings.Contains(word, "/nats/") {
			err = os.MkdirAll(word, 0o700)
		} else if err = os.MkdirAll(filepath.Dir(word), 0o700); err == nil {
			err = os.WriteFile(word, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return bytes.TrimSpace([]byte(text))
}
