package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"kiln/builder/kube"
	"kiln/builder/sandbox"
	"kiln/cmd/cli"
)

// checkEngine looks at what runs builds.
func (d *doctorCmd) checkEngine(ctx context.Context) []check {
	if d.Engine == "kube" {
		return d.checkKube(ctx)
	}
	return d.checkSandbox()
}

func (d *doctorCmd) checkSandbox() []check {
	const title = "sandbox"
	executor, err := d.Sandbox.executor()
	if err != nil {
		// The engine's own words name all places that it looked at.
		executor = ""
	}
	present, missing := sandbox.Check(sandbox.Config{
		Executor: executor, Runtime: d.Sandbox.Runtime, StateDir: cmp.Or(d.Sandbox.StateDir, filepath.Join(cli.DefaultDataDir(), "worker")),
	})
	var checks []check
	if len(present) > 0 {
		checks = append(checks, passed(title, strings.Join(present, ", ")))
	}
	for _, err := range missing {
		what, how, found := strings.Cut(err.Error(), ": ")
		if !found {
			what, how = err.Error(), "see docs/operations.md"
		}
		checks = append(checks, lacking(title, errors.New(what), how))
	}
	return checks
}

func (d *doctorCmd) checkKube(ctx context.Context) []check {
	const title = "kubernetes"
	checks := []check{d.checkImageNames()}
	client, err := kube.Connect(kube.ClientConfig{Kubeconfig: d.Kube.Kubeconfig, Context: d.Kube.Context, QPS: d.Kube.QPS, Burst: d.Kube.Burst})
	if err != nil {
		return append(checks, lacking(title, err, "name a kubeconfig with kube.kubeconfig, or run this in a Pod with a service account"))
	}
	cfg, err := d.Kube.config()
	if err != nil {
		return append(checks, lacking(title, err, "correct that setting"))
	}
	cfg.Namespace = cmp.Or(d.Kube.Namespace, client.Namespace)
	// Said above when it is missing.
	cfg.ContextImage = cmp.Or(cfg.ContextImage, "kiln")
	findings, err := kube.Check(ctx, client, cfg)
	if err != nil {
		return append(checks, lacking(title, err, "see that the API server runs and takes this user's login"))
	}
	for _, f := range findings {
		state := checkOK
		if f.Fix != "" {
			state = checkMissing
		}
		checks = append(checks, check{Name: title + " " + f.Subject, State: state, Detail: f.Detail, Fix: f.Fix})
	}
	return checks
}

// checkImageNames reads the names of the two images of a build's Pod. Whether nodes can
// pull them is theirs to say.
func (d *doctorCmd) checkImageNames() check {
	const title = "kubernetes images"
	if d.Kube.Image == "" {
		return lacking(title, errors.New("kube.image is not set"), "name Kiln's own image; `make image PUSH=...` makes and pushes it")
	}
	names := []string{d.Kube.Image}
	if d.Kube.ExecutorImage != "" {
		names = append(names, d.Kube.ExecutorImage)
	}
	for _, text := range names {
		if _, err := name.ParseReference(text); err != nil {
			return lacking(title, fmt.Errorf("%q is not the name of an image", text), "correct kube.image and kube.executor_image")
		}
	}
	return passed(title, strings.Join(names, ", "))
}
