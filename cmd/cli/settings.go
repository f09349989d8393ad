package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"sigs.k8s.io/yaml"
)

// Settings reads the configuration file that both programs share. Its keys are the
// flags' names, nested at the first dash: "nats: {url: …}" is --nats-url. The environment
// and flags win. A key that no flag has is refused.
func Settings(r io.Reader) (kong.Resolver, error) { return readSettings(r) }

// OwnSettings is Settings for a program that has some of the sections only ("nats"):
// the keys of others are another program's.
func OwnSettings(r io.Reader) (kong.Resolver, error) {
	f, err := readSettings(r)
	if err != nil {
		return nil, err
	}
	f.own = true
	return f, nil
}

func readSettings(r io.Reader) (*fileSettings, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read configuration file: %w", err)
	}
	var tree map[string]any
	if err := yaml.UnmarshalStrict(raw, &tree); err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	return &fileSettings{values: flatten("", tree, map[string]any{})}, nil
}

type fileSettings struct {
	values map[string]any
	own    bool
}

func flatten(prefix string, tree, into map[string]any) map[string]any {
	for key, value := range tree {
		name := prefix + strings.ReplaceAll(key, "_", "-")
		if branch, ok := value.(map[string]any); ok && prefix == "" {
			flatten(name+"-", branch, into)
			continue
		}
		into[name] = value
	}
	return into
}

// Validate refuses keys that no flag has. A section is the program's own when one of its
// flags can be set in the environment, as settings can.
func (f *fileSettings) Validate(app *kong.Application) error {
	known, sections := map[string]bool{}, map[string]bool{}
	_ = kong.Visit(app, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			known[flag.Name] = true
			if len(flag.Envs) > 0 {
				sections[section(flag.Name)] = true
			}
		}
		return next(nil)
	})
	var faults []error
	for key := range f.values {
		if !known[key] && (!f.own || sections[section(key)]) {
			faults = append(faults, fmt.Errorf("configuration file: there is no setting %q", strings.Replace(key, "-", ".", 1)))
		}
	}
	return errors.Join(faults...)
}

func section(key string) string {
	name, _, _ := strings.Cut(key, "-")
	return name
}

// Resolve returns the file's value of a flag that the environment does not set.
func (f *fileSettings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if slices.ContainsFunc(flag.Envs, func(env string) bool { _, set := os.LookupEnv(env); return set }) {
		return nil, nil
	}
	value, ok := f.values[flag.Name]
	if !ok {
		return nil, nil
	}
	switch v := value.(type) {
	case []any:
		parts := make([]string, len(v))
		for i, part := range v {
			parts[i] = fmt.Sprint(part)
		}
		return strings.Join(parts, ","), nil
	case map[string]any:
		for _, part := range v {
			switch part.(type) {
			case map[string]any, nil:
				raw, err := json.Marshal(v)
				return string(raw), err
			}
		}
		var parts []string
		for key, part := range v {
			parts = append(parts, key+"="+fmt.Sprint(part))
		}
		slices.Sort(parts)
		return strings.Join(parts, ";"), nil
	default:
		return fmt.Sprint(v), nil
	}
}
