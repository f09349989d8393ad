package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"kiln/builder"
	"kiln/builder/function"
	"kiln/builder/registry"
	"kiln/cmd/cli"
	"kiln/events"
	"kiln/worker"
)

// doctorImages checks the images that a function needs.
type doctorImages struct {
	registry *registry.Registry
	request  builder.Request
	platform string
	fault    error
}

// images resolves the function that is checked. A function that MLRun's rules refuse is
// part of what is reported.
func (d *doctorCmd) images(s cli.Streams) (*doctorImages, error) {
	request := events.BuildRequest{Function: []byte(`{"kind": "job", "metadata": {"name": "doctor"}, "spec": {"build": {"commands": ["true"]}}}`), ForceBuild: true}
	if d.File != "" {
		var err error
		if request, err = (cli.RequestFlags{File: d.File, Force: true}).Request(s); err != nil {
			return nil, err
		}
	}
	rules, err := d.function()
	if err != nil {
		return nil, err
	}
	images, err := registry.New(d.registry())
	if err != nil {
		return nil, cli.Usage(err)
	}
	resolved, fault := function.Resolve(rules, worker.Input("doctor", &request))
	i := &doctorImages{registry: images, request: resolved, platform: resolved.Platform, fault: fault}
	for _, platform := range []string{d.Worker.Platform, "linux/" + runtime.GOARCH} {
		if i.platform == "" {
			i.platform = platform
		}
	}
	return i, nil
}

func (i *doctorImages) close() { i.registry.Close() }

// none is why there is nothing to check; "" is no reason.
func (i *doctorImages) none() string {
	if i.fault == nil && !i.request.Decision.Build {
		return "the function needs no build here: " + i.request.Decision.Reason
	}
	return ""
}

// checkPush asks the registry whether the target may be pushed.
func (i *doctorImages) checkPush(ctx context.Context) []check {
	const name = "registry"
	if i.fault != nil {
		return []check{lacking(name, i.fault, "set registry.url, or correct the function")}
	}
	if why := i.none(); why != "" {
		return []check{skipped(name, why)}
	}
	if err := i.registry.MayPush(ctx, i.request.RegistrySecret, i.request.Target); err != nil {
		return []check{lacking(name, err, hintOf(err, "registry.docker_config"))}
	}
	return []check{passed(name, "may push "+i.request.Target)}
}

// checkBase resolves the base image.
func (i *doctorImages) checkBase(ctx context.Context) []check {
	const name = "base image"
	if i.fault != nil {
		return []check{skipped(name, "the function is not valid here")}
	}
	if why := i.none(); why != "" {
		return []check{skipped(name, why)}
	}
	if i.request.Base == builder.Scratch {
		return []check{skipped(name, "the function starts from scratch")}
	}
	image, err := i.registry.With(i.request.RegistrySecret).Resolve(ctx, i.request.Base, i.platform)
	if err != nil {
		return []check{lacking(name, err, hintOf(err, "mlrun.image_by_kind, mlrun.default_base_image"))}
	}
	return []check{passed(name, fmt.Sprintf("%s for %s, %d MiB compressed", i.request.Base, i.platform, image.Size>>20))}
}

// hintOf is what a user of that error would be told, with the setting to look at.
func hintOf(err error, setting string) string {
	e, ok := errors.AsType[*builder.Error](err)
	if !ok || e.Kind == builder.KindUnavailable {
		return "see that the registry can be reached from here, and how: registry.ca, registry.hosts, registry.insecure"
	}
	return fmt.Sprintf("%s (%s)", e.Kind.Hint(), setting)
}
