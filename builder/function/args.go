package function

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"kiln/builder"
	"kiln/builder/dockerfile"
	"kiln/builder/kaniko"
	"kiln/builder/lazyregexp"
)

var (
	// secretName finds names whose values must not be shown. Short words have to
	// be a part of the name, or end one.
	secretName = lazyregexp.New(`TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|PRIVATE|KEYS?(?:_|$)|(?:^|_)(?:PASS|PWD|AUTH|PAT)(?:_|$)`)
	// urlPassword finds a password inside an address.
	urlPassword = lazyregexp.New(`://[^/\s@]*:[^/\s@]+@`)
)

// buildArgs merges builder_env of the function and of the request, in order of
// names.
func (r resolver) buildArgs() []builder.Arg {
	env := maps.Clone(r.fn.env)
	paths := make(map[string]string, len(env)+len(r.in.BuilderEnv))
	for name := range env {
		paths[name] = "spec.build.builder_env"
	}
	if env == nil {
		env = make(map[string]string, len(r.in.BuilderEnv))
	}
	for name, value := range r.in.BuilderEnv {
		env[name], paths[name] = value, "builder_env"
	}
	args := make([]builder.Arg, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value := env[name]
		if err := dockerfile.CheckName(name); err != nil {
			r.faults.check(fmt.Sprintf("%s[%.80q]", paths[name], name), err)
		} else if strings.Contains(value, "\x00") {
			r.faults.add(paths[name]+"."+name, "holds a NUL byte")
		}
		args = append(args, builder.Arg{Name: name, Value: value, Secret: looksSecret(name, value)})
	}
	return args
}

// looksSecret reports whether the value of a build argument must not be shown.
func looksSecret(name, value string) bool {
	return secretName.MatchString(strings.ToUpper(name)) || urlPassword.MatchString(value)
}

// extraArgs adds the build arguments of spec.build.extra_args to args, and returns the
// other flags. An argument that is there with the same value is left out, with another
// value it is a fault.
func (r resolver) extraArgs(args []builder.Arg) (all []builder.Arg, flags []string) {
	const path = "spec.build.extra_args"
	parsed, flags, err := kaniko.ParseExtraArgs(r.fn.extraArgs)
	r.faults.split(path, err)
	for _, arg := range parsed {
		i := slices.IndexFunc(args, func(a builder.Arg) bool { return a.Name == arg.Name })
		switch {
		case i < 0:
			r.faults.check(path, dockerfile.CheckName(arg.Name))
			arg.Secret = looksSecret(arg.Name, arg.Value)
			args = append(args, arg)
		case args[i].Value != arg.Value:
			r.faults.add(path, "--build-arg %s has a different value than builder_env or another --build-arg; keep one of them", arg.Name)
		}
	}
	return args, flags
}
