package function

import (
	"fmt"
	"strings"

	"kiln/builder"
)

// deployed decides about a function that has its image already: by skip_deployed, or
// since it is an application whose image was built before.
func (r resolver) deployed() (builder.Decision, bool) {
	img := r.firstImage(baseImage{from: "spec.image", text: r.fn.image})
	switch {
	case r.in.SkipDeployed && img.text != "":
		return used(img, "skip_deployed is set, and the function has an image, %s.", img)
	case r.in.SkipDeployed && r.alwaysDeployed():
		img = r.firstImage(r.sparkDefault(), baseImage{from: "spec.build.base_image", text: r.fn.base}, r.sparkImage(), r.kindImage())
		if img.text == "" {
			r.needSparkImage()
		}
		return used(img, "skip_deployed is set, and a function of kind %s that adds no source, commands or extra needs none; %s is used.", r.fn.kind, img)
	case r.fn.kind == "application" && img.text != "" && !r.in.ForceBuild:
		return used(img, "the application has an image, %s; force_build makes a new one.", img)
	default:
		return builder.Decision{}, false
	}
}

func used(img baseImage, why string, args ...any) (builder.Decision, bool) {
	return builder.Decision{Image: img.ref, Reason: "No build is needed: " + fmt.Sprintf(why, args...)}, true
}

// alwaysDeployed is MLRun's rule for kinds that run on an image of the cluster:
// requirements do not count.
func (r resolver) alwaysDeployed() bool {
	fields := r.specObject()
	switch {
	case r.fn.kind == "dask":
		return !fields.isSet("remote")
	case r.fn.isSpark():
		return !fields.child("build").isSet("source") && len(r.fn.commands) == 0 && strings.TrimSpace(r.fn.extra) == ""
	default:
		return false
	}
}

// sparkDefault is the image that `kiln spark-image` makes, for functions that ask for it.
func (r resolver) sparkDefault() baseImage {
	b := baseImage{from: "the default image of kind " + r.fn.kind}
	if fields := r.specObject(); r.fn.isSpark() && fields.isSet("use_default_image") {
		b.text = sparkTarget(r.fn.kind, wantsGPU(fields))
	}
	return b
}
