// Package schemas holds the JSON Schemas (2020-12) of every event and validates
// documents against them. asyncapi.yaml describes channels and messages.
package schemas

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// FS holds every schema ("build.requested.v1.json") and asyncapi.yaml.
//
//go:embed *.json asyncapi.yaml
var FS embed.FS

const (
	idPrefix = "https://kiln.dev/schemas/"
	suffix   = ".v1.json"
)

// Violation is one place where a document breaks its schema.
type Violation struct {
	// Path is a JSON pointer into the document ("" is the whole document).
	Path    string
	Message string
}

// Error lists every violation of a document, in the order of their paths.
type Error struct {
	Violations []Violation
}

// Error joins all violations.
func (e *Error) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = cmp.Or(v.Path, "/") + ": " + v.Message
	}
	return strings.Join(parts, "; ")
}

// ID returns the $id of the schema of the given name ("build.requested").
func ID(name string) string { return idPrefix + name + suffix }

// compiled holds every schema by name; formats are asserted.
//
//nolint:gochecknoglobals // compiled once from what is embedded, never changed
var compiled = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	files, err := fs.Glob(FS, "*"+suffix)
	if err != nil {
		return nil, fmt.Errorf("list schemas: %w", err)
	}
	for _, file := range files {
		raw, err := FS.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read schema %s: %w", file, err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("parse schema %s: %w", file, err)
		}
		if err := compiler.AddResource(idPrefix+file, doc); err != nil {
			return nil, fmt.Errorf("add schema %s: %w", file, err)
		}
	}
	all := make(map[string]*jsonschema.Schema, len(files))
	for _, file := range files {
		schema, err := compiler.Compile(idPrefix + file)
		if err != nil {
			return nil, fmt.Errorf("compile schema %s: %w", file, err)
		}
		all[strings.TrimSuffix(file, suffix)] = schema
	}
	return all, nil
})

// Validate checks a JSON document against the schema of the given name
// ("build.requested"). When the document breaks it the error is an *Error with
// every violation; other errors are about the document not being JSON, or the name.
// Safe for concurrent use.
func Validate(name string, doc []byte) error {
	all, err := compiled()
	if err != nil {
		return err
	}
	schema := all[name]
	if schema == nil {
		return fmt.Errorf("there is no schema for %q", name)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		return fmt.Errorf("parse JSON: %w", err)
	}
	err = schema.Validate(value)
	if broken, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		return &Error{Violations: violations(broken)}
	}
	return err
}

// violations flattens the tree of causes to its leaves.
func violations(root *jsonschema.ValidationError) []Violation {
	printer := message.NewPrinter(language.English)
	var all []Violation
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		for _, cause := range e.Causes {
			walk(cause)
		}
		if len(e.Causes) == 0 {
			all = append(all, Violation{Path: pointer(e.InstanceLocation), Message: clip(e.ErrorKind.LocalizedString(printer))})
		}
	}
	walk(root)
	slices.SortFunc(all, func(a, b Violation) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(all)
}

// pointer renders a location as a JSON pointer (RFC 6901).
func pointer(location []string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, token := range location {
		b.WriteString("/" + escape.Replace(token))
	}
	return clip(b.String())
}

// clip bounds text that quotes the document.
func clip(s string) string {
	const limit = 500
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// FailureCodes returns the codes that build.failed may carry, in the schema's order.
func FailureCodes() []string { return codes("build.failed") }

// RunFailureCodes returns the codes that run.failed may carry, in the schema's order.
func RunFailureCodes() []string { return codes("run.failed") }

func codes(name string) []string {
	all, err := compiled()
	if err != nil {
		return nil
	}
	enum := all[name].Properties["error"].Properties["code"].Enum
	out := make([]string, 0, len(enum.Values))
	for _, v := range enum.Values {
		if code, ok := v.(string); ok {
			out = append(out, code)
		}
	}
	return out
}
