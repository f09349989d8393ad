package function_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// mlrunCase is one case of a file of facts.
type mlrunCase struct {
	id, group, what string
	// in is what MLRun was given, want what it did.
	in, want *facts
	function map[string]any
}

// describing are keys of a case that say nothing about behaviour.
func describing() []string {
	return []string{"id", "group", "what", "versions", "verified", "source", "note", "expect"}
}

func newCase(keys map[string]json.RawMessage) mlrunCase {
	in := newFacts("case", keys)
	c := mlrunCase{in: in, want: in.object("expect")}
	c.id, _ = get[string](in, "id")
	c.group, _ = get[string](in, "group")
	c.what, _ = get[string](in, "what")
	c.want.path = "expect"
	delete(in.children, "expect")
	for _, key := range describing() {
		in.read[key] = true
	}
	c.function, _ = get[map[string]any](in, "function")
	return c
}

// facts is a JSON object that remembers which of its keys were looked at.
type facts struct {
	path     string
	keys     map[string]json.RawMessage
	read     map[string]bool
	children map[string]*facts
	ignored  bool
}

// shapeError says that a fact is not of the form that its checker knows.
type shapeError struct{ text string }

func (e shapeError) Error() string { return e.text }

// unreadFact is a fact that no checker looked at.
type unreadFact struct{ path, value string }

func newFacts(path string, keys map[string]json.RawMessage) *facts {
	return &facts{path: path, keys: keys, read: map[string]bool{}, children: map[string]*facts{}}
}

// get returns the value of a key; ok is false when it is absent.
func get[T any](f *facts, key string) (value T, ok bool) {
	raw, ok := f.keys[key]
	if !ok {
		return value, false
	}
	f.read[key] = true
	if err := json.Unmarshal(raw, &value); err != nil {
		panic(shapeError{fmt.Sprintf("%s.%s: %v", f.path, key, err)})
	}
	return value, true
}

// object returns the object of a key, whose own keys are remembered.
func (f *facts) object(key string) *facts {
	if child, ok := f.children[key]; ok {
		return child
	}
	keys, _ := get[map[string]json.RawMessage](f, key)
	child := newFacts(f.path+"."+key, keys)
	f.children[key] = child
	return child
}

func (f *facts) has(key string) bool { _, ok := f.keys[key]; return ok }

func (f *facts) readAll() {
	for key := range f.keys {
		f.read[key] = true
	}
	for _, child := range f.children {
		child.readAll()
	}
}

// readNothing says that no fact was compared, and none has to be.
func (f *facts) readNothing() { f.ignored = true }

func (f *facts) anyRead() bool { return !f.ignored && len(f.read) > 0 }

func (f *facts) unread() []unreadFact {
	var list []unreadFact
	if f.ignored {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(f.keys)) {
		if child, ok := f.children[key]; ok {
			list = append(list, child.unread()...)
		} else if !f.read[key] {
			var value bytes.Buffer
			_ = json.Compact(&value, f.keys[key])
			list = append(list, unreadFact{f.path + "." + key, value.String()})
		}
	}
	return list
}
