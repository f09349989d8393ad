package nuclio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tree is a JSON object.
type tree map[string]any

// readTree decodes an object; what is decoded shares nothing with raw.
func readTree(field string, raw json.RawMessage) (tree, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil || object == nil {
		return nil, fmt.Errorf("%s: is not an object with kind, metadata and spec", field)
	}
	return object, nil
}

// child returns the object under a key, which is made where there is none.
func (t tree) child(key string) tree {
	c, ok := t[key].(map[string]any)
	if !ok {
		c = map[string]any{}
		t[key] = c
	}
	return c
}

func (t tree) text(key string) string {
	text, _ := t[key].(string)
	return text
}

// textOr returns the text under a key, or other when the key is absent or null, and
// says which of the two it is.
func (t tree) textOr(key, other string) (text string, own bool) {
	if t[key] == nil {
		return other, false
	}
	return t.text(key), true
}

// holds reports whether what is at a path, if anything, is an object.
func (t tree) holds(path []string) bool {
	for _, key := range path {
		next, ok := t[key].(map[string]any)
		if !ok {
			return t[key] == nil
		}
		t = next
	}
	return true
}

// set stores value at a path. A list is added to a list that is there.
func (t tree) set(path []string, value any) error {
	last := len(path) - 1
	for _, key := range path[:last] {
		if _, object := t[key].(map[string]any); !object && t[key] != nil {
			return fmt.Errorf("%.100q is not an object that could hold more", key)
		}
		t = t.child(key)
	}
	old, isList := t[path[last]].([]any)
	switch added, ok := value.([]any); {
	case isList && ok:
		t[path[last]] = append(old, added...)
	case isList:
		t[path[last]] = append(old, value)
	default:
		t[path[last]] = value
	}
	return nil
}

// splitPath cuts a path at its dots; a key that holds dots stands between backslashes:
// metadata.labels.\nuclio.io/tag\.
func splitPath(path string) []string {
	var keys []string
	for {
		if rest, quoted := strings.CutPrefix(path, `\`); quoted {
			key, after, closed := strings.Cut(rest, `\`)
			if closed {
				keys = append(keys, key)
				if after == "" {
					return keys
				}
				path = strings.TrimPrefix(after, ".")
				continue
			}
		}
		key, rest, more := strings.Cut(path, ".")
		if keys = append(keys, key); !more {
			return keys
		}
		path = rest
	}
}

// asTexts reads a list of texts.
func asTexts(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok && value != nil {
		return nil, errors.New("must be a list of texts")
	}
	all := make([]string, 0, len(list))
	for _, item := range list {
		text, ok := item.(string)
		if !ok {
			return nil, errors.New("must be a list of texts")
		}
		all = append(all, text)
	}
	return all, nil
}

// texts is the list as JSON has it.
func texts(list []string) []any {
	all := make([]any, len(list))
	for i, text := range list {
		all[i] = text
	}
	return all
}

// transform copies a JSON value with every text in it changed, keys apart.
func transform(value any, change func(string) string) any {
	switch v := value.(type) {
	case string:
		return change(v)
	case []any:
		all := make([]any, len(v))
		for i, item := range v {
			all[i] = transform(item, change)
		}
		return all
	case map[string]any:
		all := make(map[string]any, len(v))
		for key, item := range v {
			all[key] = transform(item, change)
		}
		return all
	default:
		return v
	}
}

// empty reports whether a value says nothing.
func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	case bool:
		return !v
	default:
		return false
	}
}

func sortedKeys(t tree) []string { return slices.Sorted(maps.Keys(t)) }
