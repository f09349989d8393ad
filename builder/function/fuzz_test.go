package function_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"kiln/builder/function"
)

// FuzzResolve proves that any function object is either refused in the promised way
// or resolved to something that renders, and that no input is changed.
func FuzzResolve(f *testing.F) {
	for _, tc := range readCases(f) {
		config, _ := tc.input()
		f.Add([]byte(tc.Function), config.Registry, tc.Request.MLRunVersionSpecifier, "NAME", "value", "30m", "linux/amd64",
			tc.Request.WithMLRun != nil, tc.Request.SkipDeployed, tc.Request.ForceBuild, "", "")
	}
	for _, c := range seeds(f) {
		f.Add([]byte(c.object()), casesRegistry, "", "NAME", "value", "", "", true, false, true, "auto", "1.7.0")
	}
	f.Add([]byte(`{"kind":"job","metadata":{"name":"\ud800"},"spec":{"build":{"commands":["#!/bin/sh\r"],"requirements":["\u2028a\\\u2029"]}}}`),
		"[::1]:5000", "\\", "=", "\x00", "-1", "/", true, true, true, "source_last", "0.0.0+unstable")
	f.Fuzz(func(t *testing.T, object []byte, registry, specifier, name, value, timeout, platform string, mlrun, skip, force bool, order, version string) {
		in := function.Input{
			RequestID: "id", Function: json.RawMessage(object), SkipDeployed: skip, ForceBuild: force, MLRunVersionSpecifier: specifier,
			BuilderEnv: map[string]string{name: value}, Timeout: timeout, Platform: platform, LayerOrder: order,
			ClientVersion: version, ClientPythonVersion: "3.7.1",
		}
		if mlrun {
			in.WithMLRun = new(true)
		}
		before := string(object)
		req, err := function.Resolve(function.Config{
			Registry: registry, RegistrySecret: "secret", MLRunVersion: "1.7.0", ImagesRegistry: "quay.io",
			Projects: map[string]function.Project{"my-proj": {Source: "git://h/a", DefaultRequirements: []string{"pandas"}}},
		}, in)
		if string(object) != before || len(in.BuilderEnv) != 1 || in.BuilderEnv[name] != value {
			t.Fatal("an input was changed")
		}
		if err != nil {
			for _, line := range faults(t, err) {
				if !strings.Contains(line, ": ") {
					t.Fatalf("fault %q names no field", line)
				}
			}
			return
		}
		checkRenders(t, req)
		if req.Decision.Build && (req.Target == "" || req.Base == "" || req.UserImage == "") {
			t.Fatalf("got a build without an image: %+v", req)
		}
		if s := req.Source; s != nil && s.Order == "" {
			t.Fatalf("nothing says why the source is where it is: %+v", s)
		}
	})
}

// seeds returns recorded functions of MLRun.
func seeds(f *testing.F) []mlrunCase {
	f.Helper()
	cases := readFacts(f, "testdata/mlrun-page.json")
	return slices.DeleteFunc(cases, func(c mlrunCase) bool { return c.function == nil })
}
