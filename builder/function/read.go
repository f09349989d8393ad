package function

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// object is a JSON object that is read key by key, so that every fault is noted
// and unknown keys are passed over.
type object struct {
	path   string
	keys   map[string]json.RawMessage
	faults *faults
}

// readObject reads raw; null and nothing are empty objects.
func readObject(path string, raw json.RawMessage, f *faults) (object, bool) {
	o := object{path: path, faults: f}
	if len(raw) == 0 {
		return o, true
	}
	if err := json.Unmarshal(raw, &o.keys); err != nil {
		return o, false
	}
	return o, true
}

// at returns the path of a key.
func (o object) at(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

func (o object) child(key string) object {
	c, ok := readObject(o.at(key), o.keys[key], o.faults)
	if !ok {
		o.faults.add(o.at(key), "is not an object")
	}
	return c
}

// isSet reports whether the key has a value other than null, false, "", {} and [].
func (o object) isSet(key string) bool {
	var compact bytes.Buffer
	if len(o.keys[key]) == 0 || json.Compact(&compact, o.keys[key]) != nil {
		return false
	}
	switch compact.String() {
	case "null", "false", `""`, "{}", "[]":
		return false
	default:
		return true
	}
}

func (o object) text(key string) string {
	var s string
	o.value(key, "text", &s)
	return s
}

// flag returns nil for an absent key and for null.
func (o object) flag(key string) *bool {
	var b *bool
	o.value(key, "true or false", &b)
	return b
}

// texts returns a list of strings; null inside it is a fault.
func (o object) texts(key string) []string {
	var items []*string
	if !o.value(key, "a list of texts", &items) {
		return nil
	}
	list := make([]string, len(items))
	for i, item := range items {
		if item == nil {
			o.faults.add(fmt.Sprintf("%s[%d]", o.at(key), i), "is null")
			continue
		}
		list[i] = *item
	}
	return list
}

// textMap returns a map of strings; null inside it is a fault.
func (o object) textMap(key string) map[string]string {
	var items map[string]*string
	if !o.value(key, "a map of names to texts", &items) {
		return nil
	}
	m := make(map[string]string, len(items))
	for _, name := range slices.Sorted(maps.Keys(items)) {
		if items[name] == nil {
			o.faults.add(fmt.Sprintf("%s[%.80q]", o.at(key), name), "is null")
			continue
		}
		m[name] = *items[name]
	}
	return m
}

func (o object) value(key, want string, into any) bool {
	raw := o.keys[key]
	if len(raw) == 0 {
		return false
	}
	if err := json.Unmarshal(raw, into); err != nil {
		o.faults.add(o.at(key), "must be %s", want)
		return false
	}
	return true
}
