package kaniko

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/kballard/go-shellquote"

	"kiln/builder"
)

// buildArg is the one flag whose values become build arguments.
const buildArg = "build-arg"

// check says what is wrong with the value of a flag.
type check func(value string) error

// userFlags are the executor's flags that a request may set. A nil check is that of a
// switch, which needs no value.
func userFlags() map[string]check {
	return map[string]check{
		"annotation":                       isAssignment,
		"cache":                            nil,
		"cache-copy-layers":                nil,
		"cache-repo":                       isWord,
		"cache-run-layers":                 nil,
		"cache-ttl":                        isDuration,
		"compressed-caching":               nil,
		"compression":                      oneOf("gzip", "zstd"),
		"compression-level":                isNumber,
		"ignore-path":                      isPath,
		"ignore-var-run":                   nil,
		"image-download-retry":             isNumber,
		"image-fs-extract-retry":           isNumber,
		"label":                            isAssignment,
		"materialize":                      nil,
		"no-push-cache":                    nil,
		"preserve-context":                 nil,
		"push-ignore-immutable-tag-errors": nil,
		"push-retry":                       isNumber,
		"reproducible":                     nil,
		"single-snapshot":                  nil,
		"skip-push-permission-check":       nil,
		"snapshot-mode":                    oneOf("full", "redo", "time"),
		"target":                           isWord,
		"use-new-run":                      nil,
	}
}

// ownedFlags are flags of the executor that are Kiln's or its operator's, with the
// reason, which says where to turn instead.
func ownedFlags() map[string]string {
	const (
		files    = "the build's container is thrown away, and its files with it"
		context  = "Kiln fetches the source; set spec.build.source"
		logging  = "Kiln reads the executor's log; set verbose on the function for a detailed one"
		registry = "how registries are reached and trusted is the operator's decision, in the configuration of registries"
		obsolete = "the executor has given it up"
	)
	return map[string]string{
		"bucket":                          context,
		"cache-dir":                       files,
		"cleanup":                         files,
		"context":                         context,
		"context-sub-path":                context,
		"credential-helpers":              registry,
		"custom-platform":                 "set options.platform",
		"customPlatform":                  "set options.platform",
		"destination":                     "set spec.build.image",
		"digest-file":                     files,
		"dockerfile":                      "Kiln writes the Dockerfile; set spec.build.extra",
		"dryrun":                          "a build has to make its image; kiln plan shows it without building",
		"force":                           "Kiln sets it",
		"force-build-metadata":            obsolete,
		"git":                             context,
		"image-name-tag-with-digest-file": files,
		"image-name-with-digest-file":     files,
		"insecure":                        registry,
		"insecure-pull":                   registry,
		"insecure-registry":               registry,
		"kaniko-dir":                      files,
		"log-format":                      logging,
		"log-timestamp":                   logging,
		"no-push":                         "a build has to push its image",
		"oci-layout-path":                 files,
		"pre-cleanup":                     files,
		"registry-certificate":            registry,
		"registry-client-cert":            registry,
		"registry-map":                    registry,
		"registry-mirror":                 registry,
		"secret":                          "secrets come from the project; set options.secrets",
		"skip-default-registry-fallback":  registry,
		"skip-tls-verify":                 registry,
		"skip-tls-verify-pull":            registry,
		"skip-tls-verify-registry":        registry,
		"skip-unused-stages":              obsolete,
		"snapshotMode":                    obsolete + "; use snapshot-mode",
		"tar-path":                        files,
		"tarPath":                         files,
		"verbosity":                       logging,
		"whitelist-var-run":               obsolete + "; use ignore-var-run",
	}
}

// ParseExtraArgs reads spec.build.extra_args, flags of the executor as a shell would
// split them: quotes and backslashes keep words together, nothing is expanded. As in
// MLRun a flag may be followed by several values, and is then meant once for each.
//
// It returns the values of --build-arg, and the other flags as "--name=value" in the
// order that they were written in. The error joins every fault: text before the first
// flag, flags that the pinned executor does not have, flags that are not a request's to
// set, and values that a flag cannot have.
func ParseExtraArgs(text string) (args []builder.Arg, flags []string, err error) {
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) }) {
		return nil, nil, errors.New("holds control characters")
	}
	words, err := shellquote.Split(text)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot be split into words: %w", err)
	}
	groups, err := group(words)
	if err != nil {
		return nil, nil, err
	}
	var faults []error
	for _, g := range groups {
		if g.name == buildArg {
			parsed, err := g.buildArgs()
			args, faults = append(args, parsed...), append(faults, err)
			continue
		}
		parsed, err := g.flags()
		flags, faults = append(flags, parsed...), append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, nil, err
	}
	return args, flags, nil
}

// flagGroup is a flag with the values that follow it.
type flagGroup struct {
	name   string
	values []string
}

func group(words []string) ([]flagGroup, error) {
	var groups []flagGroup
	for _, word := range words {
		flag, isFlag := strings.CutPrefix(word, "--")
		switch {
		case isFlag && flag != "":
			name, value, given := strings.Cut(flag, "=")
			g := flagGroup{name: name}
			if given {
				g.values = []string{value}
			}
			groups = append(groups, g)
		case len(groups) == 0:
			return nil, fmt.Errorf("%.80q stands before the first flag; flags begin with --", word)
		default:
			last := &groups[len(groups)-1]
			last.values = append(last.values, word)
		}
	}
	return groups, nil
}

func (g flagGroup) buildArgs() ([]builder.Arg, error) {
	if len(g.values) == 0 {
		return nil, errors.New("--build-arg must be followed by NAME=value")
	}
	var faults []error
	args := make([]builder.Arg, 0, len(g.values))
	for _, text := range g.values {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !argName.MatchString(name) {
			faults = append(faults, fmt.Errorf("--build-arg %.80q is not NAME=value: letters, digits and _, not beginning with a digit", name))
			continue
		}
		args = append(args, builder.Arg{Name: name, Value: value})
	}
	return args, errors.Join(faults...)
}

func (g flagGroup) flags() ([]string, error) {
	if reason, owned := ownedFlags()[g.name]; owned {
		return nil, fmt.Errorf("--%s cannot be set by a request: %s", g.name, reason)
	}
	valid, known := userFlags()[g.name]
	switch {
	case !known:
		return nil, fmt.Errorf("--%.80s is not a flag of the executor %s", g.name, builder.DefaultExecutor().Version)
	case valid == nil:
		return g.toggle()
	case len(g.values) == 0:
		return nil, fmt.Errorf("--%s must be followed by a value", g.name)
	}
	var faults []error
	flags := make([]string, 0, len(g.values))
	for _, value := range g.values {
		if err := valid(value); err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", g.name, err))
		}
		flags = append(flags, "--"+g.name+"="+value)
	}
	return flags, errors.Join(faults...)
}

// toggle returns a switch: it takes at most one value.
func (g flagGroup) toggle() ([]string, error) {
	if len(g.values) == 0 {
		return []string{"--" + g.name + "=true"}, nil
	}
	on, err := strconv.ParseBool(g.values[0])
	if err != nil || len(g.values) > 1 {
		return nil, fmt.Errorf("--%s is true or false, not %.80q", g.name, strings.Join(g.values, " "))
	}
	return []string{fmt.Sprintf("--%s=%t", g.name, on)}, nil
}

func oneOf(words ...string) check {
	return func(value string) error {
		if !slices.Contains(words, value) {
			return fmt.Errorf("%.80q is not one of %s", value, strings.Join(words, ", "))
		}
		return nil
	}
}

func isNumber(value string) error {
	if _, err := strconv.ParseUint(value, 10, 16); err != nil {
		return fmt.Errorf("%.80q is not a number from 0 to 65535", value)
	}
	return nil
}

func isDuration(value string) error {
	if d, err := time.ParseDuration(value); err != nil || d <= 0 {
		return fmt.Errorf("%.80q is not a duration such as 6h", value)
	}
	return nil
}

func isAssignment(value string) error {
	if name, _, ok := strings.Cut(value, "="); !ok || name == "" {
		return fmt.Errorf("%.80q is not key=value", value)
	}
	return nil
}

func isPath(value string) error {
	if !strings.HasPrefix(value, "/") {
		return fmt.Errorf("%.80q is not an absolute path", value)
	}
	return nil
}

func isWord(value string) error {
	if value == "" || strings.ContainsFunc(value, unicode.IsSpace) {
		return fmt.Errorf("%.80q is not one word", value)
	}
	return nil
}
