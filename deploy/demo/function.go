package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"sigs.k8s.io/yaml"
)

// runFunction prints a function file with another base image or requirements.
func runFunction(_ context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("function", flag.ContinueOnError)
	base := fs.String("base", "", "")
	requirements := fs.String("requirements", "", "")
	rest, err := parse(fs, args, 1)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(rest[0])
	if err != nil {
		return fmt.Errorf("read function: %w", err)
	}
	derived, err := derive(raw, *base, *requirements)
	if err != nil {
		return fmt.Errorf("derive %s: %w", rest[0], err)
	}
	_, err = out.Write(derived)
	return err
}

// derive sets spec.build.base_image and spec.build.requirements; an empty value
// leaves the field as it is.
func derive(function []byte, base, requirements string) ([]byte, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(function, &doc); err != nil {
		return nil, fmt.Errorf("parse YAML: %w", err)
	}
	spec, _ := doc["spec"].(map[string]any)
	build, ok := spec["build"].(map[string]any)
	if !ok {
		return nil, errors.New("there is no spec.build")
	}
	if base != "" {
		build["base_image"] = base
	}
	if requirements != "" {
		build["requirements"] = strings.Split(requirements, ",")
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return text, nil
}

// runField prints a field of the JSON document on standard input.
func runField(_ context.Context, args []string, out io.Writer) error {
	rest, err := parse(flag.NewFlagSet("field", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	value, err := field(os.Stdin, rest[0])
	if err != nil {
		return fmt.Errorf("field: %w", err)
	}
	_, err = fmt.Fprintln(out, value)
	return err
}

// field returns the value at a path of keys joined by dots.
func field(in io.Reader, path string) (any, error) {
	var value any
	decoder := json.NewDecoder(in)
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	for key := range strings.SplitSeq(path, ".") {
		object, _ := value.(map[string]any)
		var ok bool
		if value, ok = object[key]; !ok {
			return nil, fmt.Errorf("the document has no %s", path)
		}
	}
	return value, nil
}
