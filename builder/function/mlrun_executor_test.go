package function_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/kaniko"
)

// executor compares the arguments of Kaniko.
func (d *diffs) executor(want *facts, b build) {
	args, ok := get[[]string](want, "kaniko_args")
	if !ok {
		return
	}
	got := kaniko.Args(b.plan, kaniko.Options{DigestFile: "/digest"})
	for i := 0; i < len(args); i++ {
		flag, value := args[i], ""
		if i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
			i++
			value = args[i]
		}
		switch flag {
		case "--dockerfile", "--context", "--destination":
			if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, flag+"=") }) {
				d.add("kaniko_args", flag, got)
			}
		case "--build-arg":
			d.buildArg(value, got, b.plan)
		case "--insecure", "--insecure-pull":
			if !slices.Contains(got, flag) {
				d.add("kaniko_args."+flag, flag, "by host, from the configuration")
			}
		default:
			last := lastValue(got, flag)
			if value == "" {
				value = "true"
			}
			if !slices.Contains(got, flag+"="+value) || flag != "--ignore-path" && last != value {
				d.add("kaniko_args."+flag, flag+" "+value, fmt.Sprintf("%s=%s", flag, last))
			}
		}
	}
}

// lastValue returns the value that counts when a flag is given more than once.
func lastValue(args []string, flag string) string {
	last := ""
	for _, arg := range args {
		if value, ok := strings.CutPrefix(arg, flag+"="); ok {
			last = value
		}
	}
	return last
}

// buildArg wants the argument to be passed by name, and its value to be in the
// environment of the executor only.
func (d *diffs) buildArg(text string, args []string, plan builder.Plan) {
	key, value, _ := strings.Cut(text, "=")
	if value == "$"+key {
		d.add("kaniko_args.secret", text, "no argument, a secret mount")
		return
	}
	if !slices.Contains(args, "--build-arg="+key) || !slices.Contains(kaniko.Env(plan), text) {
		d.add("kaniko_args.build-arg", text, plan.BuildArgs)
	}
}

// pod compares where the build is asked to run. The rest of a pod is the engine's.
func (d *diffs) pod(want *facts, b build) {
	s := b.req.Scheduling
	for key, got := range map[string]string{"service_account": s.ServiceAccount, "node_name": s.NodeName, "priority_class_name": s.PriorityClass} {
		if text, ok := get[string](want, key); ok {
			d.equal("pod."+key, text, got)
		}
	}
	if selector, ok := get[map[string]string](want, "node_selector"); ok {
		d.equal("pod.node_selector", selector, s.NodeSelector)
	}
	for key, got := range map[string]json.RawMessage{"affinity": s.Affinity, "tolerations": s.Tolerations} {
		if text, ok := get[any](want, key); ok {
			var value any
			_ = json.Unmarshal(got, &value)
			d.equal("pod."+key, text, value)
		}
	}
}
