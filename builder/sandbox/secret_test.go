package sandbox

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/builder"
	"kiln/builder/kaniko"
	"kiln/builder/registry"
	"kiln/builder/secrets"
)

// secretValue is of a form that nothing else in an image has.
const secretValue = "s3cr3t-of-the-project-7f1c"

// projectStore is a folder with one project's secrets.
func projectStore(t *testing.T, project string, values map[string]string) *secrets.Store {
	t.Helper()
	dir := t.TempDir()
	for key, value := range values {
		file := filepath.Join(dir, project, key)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := secrets.New(secrets.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestASecretOfTheProjectReachesCommandsAndNothingElse(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	e, s := engine(t, cfg), newSite(t)
	images, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	store := projectStore(t, "demo", map[string]string{"API_KEY": secretValue, "OTHER": "other-" + secretValue, "mlrun.internal": "internal-" + secretValue})
	b, err := builder.New(builder.Config{}, builder.Lookup{Registry: images, Secrets: store}, e)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := b.Plan(t.Context(), builder.Request{
		Project: "demo", Name: "fn", Tag: "latest", Base: s.base.Ref, Target: s.reg.Host + "/team/secret:1", Secrets: []string{"API_KEY"},
		Commands: []string{
			`echo "the key is $API_KEY"; test -z "$OTHER"; printf '%s' "${#API_KEY}" >/length`,
			"env >/dev/null\nprintf '%s' \"$API_KEY\" | grep -q of-the-project",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	plan.Attempt = 1
	var log strings.Builder
	if _, err := b.Build(t.Context(), plan, &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if !strings.Contains(log.String(), "the key is ***") {
		t.Errorf("the command did not see the secret, or the log shows it:\n%s", log.String())
	}
	identity, err := json.Marshal(plan.Identity)
	if err != nil {
		t.Fatal(err)
	}
	traces := map[string]string{
		"log": log.String(), "identity": string(identity), "build id": plan.BuildID,
		"arguments": strings.Join(kaniko.Args(plan, kaniko.Options{}), " "),
	}
	found := contents(t, plan.Destination)
	maps.Copy(traces, found)
	for part, text := range traces {
		for _, form := range []string{secretValue, base64.StdEncoding.EncodeToString([]byte(secretValue))} {
			if strings.Contains(text, form) {
				t.Errorf("the %s of the image shows the secret", part)
			}
		}
	}
	if length := strconv.Itoa(len(secretValue)); found["length"] != length {
		t.Errorf("the command saw a secret of length %q, want %s", found["length"], length)
	}
	_ = filepath.WalkDir(cfg.StateDir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			if raw, err := os.ReadFile(path); err == nil && bytes.Contains(raw, []byte(secretValue)) {
				t.Errorf("%s is left behind with the secret", path)
			}
		}
		return nil
	})
}

// contents returns manifest, config with history, and all layers of an image, and what
// is in its file /length.
func contents(t *testing.T, ref string) map[string]string {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{"manifest": string(manifest), "config and history": string(config)}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		_ = content.Close()
		parts["layers"] += string(raw)
		for files := tar.NewReader(bytes.NewReader(raw)); ; {
			header, err := files.Next()
			if err != nil {
				break
			}
			if header.Name == "length" {
				made, _ := io.ReadAll(files)
				parts["length"] = string(made)
			}
		}
	}
	return parts
}
