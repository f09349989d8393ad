package function_test

import (
	"encoding/json"
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
			tc.Request.WithMLRun != nil, tc.Request.SkipDeployed, tc.Request.ForceBuild)
	}
	f.Add([]byte(`{"kind":"job","metadata":{"name":"\ud800"},"spec":{"build":{"commands":["#!/bin/sh\r"],"requirements":["\u2028a\\\u2029"]}}}`),
		"[::1]:5000", "\\", "=", "\x00", "-1", "/", true, true, true)
	f.Fuzz(func(t *testing.T, object []byte, registry, specifier, name, value, timeout, platform string, mlrun, skip, force bool) {
		in := function.Input{
			RequestID: "id", Function: json.RawMessage(object), SkipDeployed: skip, ForceBuild: force, MLRunVersionSpecifier: specifier,
			BuilderEnv: map[string]string{name: value}, Timeout: timeout, Platform: platform,
		}
		if mlrun {
			in.WithMLRun = new(true)
		}
		before := string(object)
		req, err := function.Resolve(function.Config{Registry: registry}, in)
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
	})
}
