package schemas_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"kiln/schemas"
)

// eventOf returns the schema that a test file is for: "build.requested.minimal.json".
func eventOf(file string) string {
	parts := strings.SplitN(filepath.Base(file), ".", 3)
	return parts[0] + "." + parts[1]
}

func TestValidDocumentsPass(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/valid/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files (%v)", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			doc, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := schemas.Validate(eventOf(file), doc); err != nil {
				t.Errorf("Validate() = %v", err)
			}
		})
	}
}

func TestInvalidDocumentsTellEveryPath(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/invalid/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test files (%v)", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var tc struct {
				Paths    []string
				Document json.RawMessage
			}
			if err := json.Unmarshal(raw, &tc); err != nil {
				t.Fatal(err)
			}
			broken, ok := errors.AsType[*schemas.Error](schemas.Validate(eventOf(file), tc.Document))
			if !ok {
				t.Fatalf("Validate() gave no *Error")
			}
			var paths []string
			for _, v := range broken.Violations {
				if v.Message == "" {
					t.Errorf("violation at %q has no message", v.Path)
				}
				paths = append(paths, v.Path)
			}
			if diff := cmp.Diff(tc.Paths, paths); diff != "" {
				t.Errorf("paths (-want +got):\n%s\n%v", diff, broken)
			}
		})
	}
}

func TestUnknownNameAndBadJSONAreErrorsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, err := range []error{schemas.Validate("build.dreamed", []byte(`{}`)), schemas.Validate("build.requested", []byte(`{`))} {
		if _, ok := errors.AsType[*schemas.Error](err); ok || err == nil {
			t.Errorf("Validate() = %v, want an error that is no list of violations", err)
		}
	}
}

func TestHugeValuesDoNotBlowUpTheMessage(t *testing.T) {
	t.Parallel()
	doc, err := json.Marshal(map[string]any{strings.Repeat("k", 100_000): 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(schemas.Validate("build.requested", doc).Error()); got > 5000 {
		t.Errorf("the error has %d bytes", got)
	}
}

func TestFailureCodesAreUniqueAndKnown(t *testing.T) {
	t.Parallel()
	want := []string{
		"invalid_request", "conflict", "base_not_found", "source_not_found", "command_failed", "requirements_failed",
		"push_denied", "pull_denied", "timeout", "out_of_memory", "disk_full", "canceled", "unavailable", "queue_full",
	}
	if diff := cmp.Diff(want, schemas.FailureCodes()); diff != "" {
		t.Errorf("codes are append only (-want +got):\n%s", diff)
	}
	want = append(want, "image_required", "build_failed", "run_failed")
	if diff := cmp.Diff(want, schemas.RunFailureCodes()); diff != "" {
		t.Errorf("codes of runs are append only (-want +got):\n%s", diff)
	}
}

func TestAsyncAPICoversEverySchema(t *testing.T) {
	t.Parallel()
	raw, err := schemas.FS.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Channels map[string]struct {
			Address  string
			Messages map[string]struct {
				Ref string `json:"$ref"`
			}
		}
		Operations map[string]struct {
			Channel struct {
				Ref string `json:"$ref"`
			}
		}
		Components struct {
			Messages map[string]struct {
				Name    string
				Payload map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	addresses, used := map[string]bool{}, map[string]bool{}
	for name, c := range doc.Channels {
		addresses[c.Address] = true
		for _, m := range c.Messages {
			if _, ok := doc.Components.Messages[strings.TrimPrefix(m.Ref, "#/components/messages/")]; !ok {
				t.Errorf("channel %s refers to %s, which is not there", name, m.Ref)
			}
		}
	}
	for name, op := range doc.Operations {
		if _, ok := doc.Channels[strings.TrimPrefix(op.Channel.Ref, "#/channels/")]; !ok {
			t.Errorf("operation %s refers to %s, which is not there", name, op.Channel.Ref)
		}
	}
	for name, m := range doc.Components.Messages {
		if ref := m.Payload["$ref"]; ref != "" {
			used[strings.TrimPrefix(ref, "./")] = true
			if _, err := fs.Stat(schemas.FS, strings.TrimPrefix(ref, "./")); err != nil {
				t.Errorf("message %s: %v", name, err)
			}
		}
	}
	files := schemaFiles(t)
	for _, file := range files {
		if !used[file] || !addresses[strings.TrimSuffix(file, ".v1.json")] {
			t.Errorf("%s is not described as a message on its subject", file)
		}
	}
}

// schemaFiles lists the schemas of events.
func schemaFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	for _, pattern := range []string{"build.*.json", "run.*.json"} {
		found, err := fs.Glob(schemas.FS, pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s (%v)", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}
