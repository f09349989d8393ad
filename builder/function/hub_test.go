package function_test

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"kiln/builder/function"
)

// TestResolveTakesPublishedFunctions uses functions as they are published in
// MLRun's hub, in the form of the file that the client exports.
func TestResolveTakesPublishedFunctions(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../cmd/kilnd/testdata/hub/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no function files: %v", err)
	}
	built := map[string]bool{
		"azureml_utils": true, "noise_reduction": true, "pyannote_audio": true, "structured_data_generator": true,
		"text_to_audio_generator": true, "transcribe": true,
	}
	for _, file := range files {
		name := filepath.Base(file)
		name = name[:len(name)-len(".yaml")]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			object, err := yaml.YAMLToJSON(text)
			if err != nil {
				t.Fatal(err)
			}
			req, err := function.Resolve(function.Config{Registry: "localhost:5000"}, function.Input{Function: object})
			if err != nil {
				t.Fatal(err)
			}
			checkRenders(t, req)
			if req.Decision.Build != built[name] {
				t.Errorf("build is %t, want %t: %s", req.Decision.Build, built[name], req.Decision.Reason)
			}
			t.Log(req.Decision.Reason, req.Target)
		})
	}
}
