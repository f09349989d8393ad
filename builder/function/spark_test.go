package function_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/function"
)

func sparkConfig() function.Config {
	return function.Config{
		Registry: "registry.example.com/team", MLRunVersion: "1.7.0",
		Spark: function.Spark{Image: "gcr.io/iguazio/spark-app", Tag: "v3.2.0-mlk"},
	}
}

// sparkImage resolves the default image as `kiln spark-image` asks for it.
func sparkImage(t *testing.T, c function.Config, kind string, gpu bool) (builder.Request, error) {
	t.Helper()
	object, err := function.SparkImage(kind, "default", gpu)
	if err != nil {
		t.Fatal(err)
	}
	return function.Resolve(c, function.Input{Function: object})
}

func TestDefaultSparkImages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind                 string
		gpu                  bool
		name, user, base     string
		requirements, target string
	}{
		{"spark", false, "spark-default-image-deploy-temp", ".spark-job-default-image", "gcr.io/iguazio/spark-app:v3.2.0-mlk", "mlrun[complete]==1.7.0", "registry.example.com/team/spark-job-default-image:latest"},
		{"spark", true, "spark-default-image-deploy-temp", ".spark-job-default-image-cuda", "gcr.io/iguazio/spark-app:v3.2.0-mlk", "mlrun[complete]==1.7.0", "registry.example.com/team/spark-job-default-image-cuda:latest"},
		{"remote-spark", false, "remote-spark-default-image-deploy-temp", ".remote-spark-default-image", "gcr.io/iguazio/shell:v3.2.0-mlk", "mlrun[complete]==1.7.0", "registry.example.com/team/remote-spark-default-image:latest"},
	} {
		req, err := sparkImage(t, sparkConfig(), tc.kind, tc.gpu)
		if err != nil {
			t.Errorf("%s: %v", tc.kind, err)
			continue
		}
		got := []string{req.Name, req.UserImage, req.Base, strings.Join(req.Requirements, " "), req.Target}
		if diff := cmp.Diff([]string{tc.name, tc.user, tc.base, tc.requirements, tc.target}, got); diff != "" || !req.Decision.Build {
			t.Errorf("%s, GPU %t: build %t (-want +got):\n%s", tc.kind, tc.gpu, req.Decision.Build, diff)
		}
	}
	for _, kind := range []string{"remote-spark", "job", ""} {
		if object, err := function.SparkImage(kind, "default", true); err == nil {
			t.Errorf("SparkImage(%q, GPU) = %s", kind, object)
		}
	}
}

func TestTheSparkImageIsNewWhenSparkOrMLRunIs(t *testing.T) {
	t.Parallel()
	identity := func(change func(*function.Config)) string {
		c := sparkConfig()
		change(&c)
		req, err := sparkImage(t, c, "spark", false)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := builder.Pin(t.Context(), builder.Config{}, builder.Lookup{Registry: byName{}}, req)
		if err != nil {
			t.Fatal(err)
		}
		return plan.BuildID
	}
	first := identity(func(*function.Config) {})
	if again := identity(func(c *function.Config) { c.TargetNameTemplate = "other-{project}-{name}" }); again != first {
		t.Error("the same image is made again")
	}
	for name, change := range map[string]func(*function.Config){
		"Spark's image": func(c *function.Config) { c.Spark.Image = "gcr.io/other/spark-app" },
		"Spark's tag":   func(c *function.Config) { c.Spark.Tag = "v3.5.0" },
		"MLRun":         func(c *function.Config) { c.MLRunVersion = "1.8.0" },
		"pip":           func(c *function.Config) { c.PipVersion = "~=24.0" },
	} {
		if identity(change) == first {
			t.Errorf("another version of %s makes no other image", name)
		}
	}
}

// byName is a registry in which every image exists, under a digest of its name.
type byName struct{ builder.Registry }

func (r byName) With(string) builder.Registry { return r }

func (byName) Resolve(_ context.Context, ref, _ string) (builder.Image, error) {
	return builder.Image{Ref: ref, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(ref)))}, nil
}

func TestASparkFunctionWithoutABaseStartsFromTheConfiguredImage(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]string{
		`"build": {"commands": ["x"]}`: "gcr.io/iguazio/spark-app:v3.2.0-mlk",
		`"driver_resources": {"limits": {"nvidia.com/gpu": 1}}, "build": {"commands": ["x"]}`:     "gcr.io/iguazio/spark-app-cuda:v3.2.0-mlk",
		`"executor_resources": {"limits": {"nvidia.com/gpu": "2"}}, "build": {"commands": ["x"]}`: "gcr.io/iguazio/spark-app-cuda:v3.2.0-mlk",
		`"executor_resources": {"limits": {"nvidia.com/gpu": 0, "cpu": 3}}`:                       "gcr.io/iguazio/spark-app:v3.2.0-mlk",
		`"executor_resources": {"requests": {"nvidia.com/gpu": 1}}`:                               "gcr.io/iguazio/spark-app:v3.2.0-mlk",
		`"build": {"base_image": "own/spark:1"}`:                                                  "own/spark:1",
		`"image": "own/spark:2", "build": {"commands": ["x"]}`:                                    "own/spark:2",
	} {
		req, err := function.Resolve(sparkConfig(), function.Input{Function: json.RawMessage(`{"kind": "spark", "metadata": {"name": "a"}, "spec": {` + fields + `}}`)})
		if err != nil || req.Base != want || !req.Decision.Build {
			t.Errorf("%s: base %q, build %t, %v; want %s", fields, req.Base, req.Decision.Build, err, want)
		}
	}
}

func TestARemoteSparkFunctionStartsFromTheShell(t *testing.T) {
	t.Parallel()
	resolve := func(fields string) (builder.Request, error) {
		return function.Resolve(sparkConfig(), function.Input{Function: json.RawMessage(`{"kind": "remote-spark", "metadata": {"name": "a"}, "spec": {` + fields + `}}`)})
	}
	req, err := resolve(`"provider": "iguazio", "build": {"commands": ["x"]}`)
	if err != nil || req.Base != "gcr.io/iguazio/shell:v3.2.0-mlk" || !req.Decision.Build {
		t.Errorf("got base %q, %v", req.Base, err)
	}
	if _, err := resolve(`"provider": "other", "build": {"commands": ["x"]}`); err == nil || !strings.Contains(err.Error(), "spec.build.base_image: is not set") {
		t.Errorf("another provider: got %v", err)
	}
}

func TestASparkFunctionWithNothingToStartFromIsRefused(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"spark", "remote-spark"} {
		_, err := sparkImage(t, function.Config{Registry: "registry.example.com/team"}, kind, false)
		if err == nil || !strings.Contains(err.Error(), "spec.build.base_image: is not set") && !strings.Contains(err.Error(), "spec.image: is not set") {
			t.Errorf("kind %s: got %v", kind, err)
		}
		_, err = function.Resolve(function.Config{Registry: "h.example/a"}, function.Input{Function: json.RawMessage(`{"kind": "` + kind + `", "metadata": {"name": "a"}, "spec": {"build": {"commands": ["x"]}}}`)})
		if err == nil || !strings.Contains(err.Error(), "mlrun.spark_app_image_tag") {
			t.Errorf("kind %s: got %v, want an error that names the setting", kind, err)
		}
	}
	req, err := function.Resolve(function.Config{Registry: "h.example/a", ImageByKind: map[string]string{"spark": "own/spark:1"}}, function.Input{
		Function: json.RawMessage(`{"kind": "spark", "metadata": {"name": "a"}, "spec": {"build": {"commands": ["x"]}}}`),
	})
	if err != nil || req.Base != "own/spark:1" {
		t.Errorf("an image of the kind: got %q, %v", req.Base, err)
	}
}

func TestSparkFunctionsCountAsDeployed(t *testing.T) {
	t.Parallel()
	for fields, build := range map[string]bool{
		``:                                     false,
		`"build": {"requirements": ["numpy"]}`: false,
		`"build": {"commands": ["x"]}`:         true,
		`"build": {"extra": "USER 1"}`:         true,
		`"build": {"source": "git://h/r#b"}`:   true,
	} {
		for kind, image := range map[string]string{"spark": "gcr.io/iguazio/spark-app:v3.2.0-mlk", "remote-spark": "gcr.io/iguazio/shell:v3.2.0-mlk"} {
			req, err := function.Resolve(sparkConfig(), function.Input{
				Function: json.RawMessage(`{"kind": "` + kind + `", "metadata": {"name": "a"}, "spec": {` + fields + `}}`), SkipDeployed: true,
			})
			if err != nil || req.Decision.Build != build || !build && req.Decision.Image != image {
				t.Errorf("%s {%s}: build %t, image %q, %v", kind, fields, req.Decision.Build, req.Decision.Image, err)
			}
		}
	}
}

func TestASparkImageThatIsNoneIsAFaultOfTheConfiguration(t *testing.T) {
	t.Parallel()
	for _, s := range []function.Spark{{Image: "a/b"}, {Tag: "1"}, {Image: "a/b:1", Tag: "1"}, {Image: "A B", Tag: "1"}, {Image: "a/b", Tag: "a b"}} {
		if err := (function.Config{Spark: s}).Validate(); err == nil || !strings.Contains(err.Error(), "the Spark image") {
			t.Errorf("%+v: got %v", s, err)
		}
	}
}
