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

// files loads schemas by their $id.
type files struct{}

// Load implements jsonschema.URLLoader.
func (files) Load(id string) (any, error) {
	raw, err := FS.ReadFile(strings.TrimPrefix(id, idPrefix))
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(raw))
}

// cache compiles each schema when it is needed for the first time: all of them take
// longer than a short command line does otherwise. Formats are asserted.
type cache struct {
	mu       sync.Mutex
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema
}

//nolint:gochecknoglobals // holds what is embedded, compiled
var compiled cache

func (c *cache) get(name string) (*jsonschema.Schema, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if schema := c.schemas[name]; schema != nil {
		return schema, nil
	}
	if _, err := fs.Stat(FS, name+suffix); err != nil {
		return nil, fmt.Errorf("there is no schema for %q", name)
	}
	if c.compiler == nil {
		c.compiler, c.schemas = jsonschema.NewCompiler(), map[string]*jsonschema.Schema{}
		c.compiler.DefaultDraft(jsonschema.Draft2020)
		c.compiler.AssertFormat()
		c.compiler.UseLoader(files{})
	}
	schema, err := c.compiler.Compile(ID(name))
	if err != nil {
		return nil, fmt.Errorf("compile schema %s: %w", name, err)
	}
	c.schemas[name] = schema
	return schema, nil
}

// Prepare compiles the schemas of the given names, so that the first Validate need not.
// Safe for concurrent use.
func Prepare(names ...string) error {
	for _, name := range names {
		if _, err := compiled.get(name); err != nil {
			return err
		}
	}
	return nil
}

// Validate checks a JSON document against the schema of the given name
// ("build.requested"). When the document breaks it the error is an *Error with
// every violation; other errors are about the document not being JSON, or the name.
// Safe for concurrent use.
func Validate(name string, doc []byte) error {
	schema, err := compiled.get(name)
	if err != nil {
		return err
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
	schema, err := compiled.get(name)
	if err != nil {
		return nil
	}
	enum := schema.Properties["error"].Properties["code"].Enum
	out := make([]string, 0, len(enum.Values))
	for _, v := range enum.Values {
		if code, ok := v.(string); ok {
			out = append(out, code)
		}
	}
	return out
}
