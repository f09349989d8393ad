//go:build e2e

package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"

	"kiln/builder/enginetest"
)

// TestRequirementsOfEveryFormInstall lets the pip of a real base install from an index
// that only the configured certificates vouch for.
func TestRequirementsOfEveryFormInstall(t *testing.T) {
	ca := enginetest.NewAuthority(t)
	index := packageIndex(t, ca, "127.0.0.1")
	k := up(t, t.TempDir(), "KILN_PIP_INDEX_URL="+index+"/simple/", "KILN_PIP_CA="+ca.File)
	base := k.Registry + "/python:1"
	pushPython(t, base)
	body, err := json.Marshal(map[string]any{
		"kind": "job", "metadata": map[string]any{"name": "forms", "project": "e2e"},
		"spec": map[string]any{"build": map[string]any{
			"base_image": base, "with_mlrun": false,
			"commands": []string{`printf 'kiln-demo-model==1.0\n' > /more.txt`},
			"requirements": []string{
				"# every form of a line",
				"  kiln-demo-features[fast] @ " + index + "/files/kiln_demo_features-1.1-py3-none-any.whl  # with an extra",
				`no-such-package==9; python_version < "3"`,
				"-r /more.txt",
				"",
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	js := k.js(t)
	if _, err := js.Publish(t.Context(), "build.requested", body, jetstreamID("forms")...); err != nil {
		t.Fatal(err)
	}
	all := terminals(t, js, "forms", 3*time.Minute)
	if len(all) != 1 || all[0].subject != "build.completed" {
		t.Fatalf("terminal events = %s\n%s", all[0].Data, k.out)
	}
	ref, _ := all[0].field(t, "image_ref").(string)
	img, err := crane.Pull(ref)
	if err != nil {
		t.Fatal(err)
	}
	var installed, ours []string
	for name := range imageFiles(t, img) {
		if strings.Contains(name, "kiln_demo_") && strings.HasSuffix(name, "dist-info/METADATA") {
			installed = append(installed, filepath.Base(filepath.Dir(name)))
		}
		if strings.HasPrefix(name, "kiln") || strings.HasSuffix(name, "pip-ca.crt") || strings.HasSuffix(name, "requirements.txt") {
			ours = append(ours, name)
		}
	}
	if got := strings.Join(installed, " "); !strings.Contains(got, "kiln_demo_features-1.1") || !strings.Contains(got, "kiln_demo_model-1.0") || len(installed) != 2 {
		t.Errorf("installed: %s", got)
	}
	if len(ours) > 0 {
		t.Errorf("files of the build in the image: %v", ours)
	}
}
