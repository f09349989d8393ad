package function

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Kinds of Spark functions.
const (
	// KindSpark runs with the Spark operator.
	KindSpark = "spark"
	// KindRemoteSpark runs against a Spark service.
	KindRemoteSpark = "remote-spark"
)

const (
	gpuSuffix = "-cuda"
	// providerIguazio is the only Spark service that comes with an image.
	providerIguazio = "iguazio"
	sparkFrom       = "the Spark image of the configuration"
)

// Spark names the image that functions of the kinds spark and remote-spark start from
// when they name none: Image ("registry.example.com/spark-app") with Tag. Both or none
// must be set.
type Spark struct{ Image, Tag string }

func (s Spark) validate(registry string) error {
	switch {
	case s == Spark{}:
		return nil
	case s.Image == "" || s.Tag == "":
		return errors.New("it needs both spark_app_image and spark_app_image_tag")
	case !tagPattern.MatchString(s.Tag):
		return fmt.Errorf("%q is not an image tag", s.Tag)
	default:
		img, err := parseImage(registry, s.Image)
		if err == nil && (img.tag != "" || img.digest) {
			err = fmt.Errorf("%q has a tag or a digest; the tag is spark_app_image_tag", s.Image)
		}
		return err
	}
}

// SparkImage returns the function object that the default Spark image is built of, as
// MLRun's deploy_default_image makes it. Gpu chooses the name of the image of kind
// spark; the base is what the worker's configuration says.
func SparkImage(kind, project string, gpu bool) (json.RawMessage, error) {
	fields := map[string]any{"build": map[string]any{"image": sparkTarget(kind, gpu)}}
	name := "spark-default-image-deploy-temp"
	switch {
	case kind == KindRemoteSpark && gpu:
		return nil, errors.New("there is no image of kind remote-spark for GPUs; there is one of kind spark")
	case kind == KindRemoteSpark:
		name, fields["provider"] = "remote-"+name, providerIguazio
	case kind != KindSpark:
		return nil, fmt.Errorf("%.80q is not a kind of Spark functions; there are spark and remote-spark", kind)
	}
	return json.Marshal(map[string]any{
		"kind": kind, "metadata": map[string]any{"name": name, "project": project}, "spec": fields,
	})
}

// sparkTarget is the default Spark image, in the configured registry.
func sparkTarget(kind string, gpu bool) string {
	switch {
	case kind == KindRemoteSpark:
		return ".remote-spark-default-image"
	case gpu:
		return ".spark-job-default-image" + gpuSuffix
	default:
		return ".spark-job-default-image"
	}
}

// isSpark reports whether the function runs on Spark.
func (s spec) isSpark() bool { return s.kind == KindSpark || s.kind == KindRemoteSpark }

// sparkImage is the configured image for a Spark function; for other kinds and
// providers there is none.
func (r resolver) sparkImage() baseImage {
	b := baseImage{from: sparkFrom}
	s := r.config.Spark
	if !r.fn.isSpark() || s == (Spark{}) {
		return b
	}
	fields := r.specObject()
	if r.fn.kind == KindRemoteSpark {
		if p := fields.text("provider"); p != "" && p != providerIguazio {
			return b
		}
		s.Image = strings.ReplaceAll(s.Image, "spark-app", "shell")
	}
	if wantsGPU(fields) {
		s.Image += gpuSuffix
	}
	b.text = s.Image + ":" + s.Tag
	return b
}

// needSparkImage notes that a Spark function has nothing to start from.
func (r resolver) needSparkImage() {
	r.faults.add("spec.build.base_image", "is not set, and there is no default image for kind %s here: name one, or have the operator "+
		"set mlrun.spark_app_image and mlrun.spark_app_image_tag", r.fn.kind)
}

// specObject is the function's spec, without noting faults of what was read before.
func (r resolver) specObject() object {
	root, _ := readObject("", r.in.Function, &faults{})
	return root.child("spec")
}

// wantsGPU reports whether driver, executor or pod have a limit for GPUs.
func wantsGPU(fields object) bool {
	for _, key := range []string{"driver_resources", "executor_resources", "resources"} {
		for resource, raw := range fields.child(key).child("limits").keys {
			quantity := strings.Trim(string(raw), `" `)
			if strings.Contains(strings.ToLower(resource), "gpu") && quantity != "" && quantity != "0" && quantity != "null" {
				return true
			}
		}
	}
	return false
}
