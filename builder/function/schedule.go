package function

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"kiln/builder"
)

// readScheduling reads where the function asks to run, which its build follows.
func readScheduling(fields object) builder.Scheduling {
	s := builder.Scheduling{
		NodeName:       strings.TrimSpace(fields.text("node_name")),
		NodeSelector:   fields.labels("node_selector"),
		Affinity:       fields.raw("affinity", '{', "an object"),
		Tolerations:    fields.raw("tolerations", '[', "a list"),
		PriorityClass:  strings.TrimSpace(fields.text("priority_class_name")),
		ServiceAccount: strings.TrimSpace(fields.text("service_account")),
	}
	for _, name := range []struct{ key, text string }{
		{"node_name", s.NodeName}, {"priority_class_name", s.PriorityClass}, {"service_account", s.ServiceAccount},
	} {
		fields.faults.check(fields.at(name.key), checkObjectName(name.text))
	}
	return s
}

// scheduling puts the function's wishes on top of the project's and the operator's.
// An empty value takes an entry of the node selector away.
func (r resolver) scheduling() builder.Scheduling {
	s := r.fn.scheduling
	selector := maps.Clone(r.config.NodeSelector)
	if selector == nil {
		selector = map[string]string{}
	}
	maps.Copy(selector, r.project.NodeSelector)
	maps.Copy(selector, s.NodeSelector)
	maps.DeleteFunc(selector, func(_, value string) bool { return value == "" })
	s.NodeSelector = nil
	if len(selector) > 0 {
		s.NodeSelector = selector
	}
	allowed := r.project.ServiceAccounts
	switch {
	case s.ServiceAccount == "":
		s.ServiceAccount = r.project.ServiceAccount
		setDefault(&s.ServiceAccount, r.config.ServiceAccount)
	case len(allowed) > 0 && !slices.Contains(allowed, s.ServiceAccount):
		r.faults.add("spec.service_account", "%s is not one of those that project %s allows: %s",
			s.ServiceAccount, r.fn.project, strings.Join(allowed, ", "))
	}
	return s
}

// labels returns a map of strings, where null stands for "".
func (o object) labels(key string) map[string]string {
	var items map[string]*string
	if !o.value(key, "a map of names to texts", &items) {
		return nil
	}
	m := make(map[string]string, len(items))
	for name, value := range items {
		m[name] = ""
		if value != nil {
			m[name] = *value
		}
	}
	return m
}

// raw returns a JSON value as it is written, without white space, or nil when it is
// absent, null or empty. open is the character that it begins with.
func (o object) raw(key string, open byte, want string) json.RawMessage {
	if !o.isSet(key) {
		return nil
	}
	var compact bytes.Buffer
	if json.Compact(&compact, o.keys[key]) != nil || compact.Bytes()[0] != open {
		o.faults.add(o.at(key), "must be %s", want)
		return nil
	}
	return compact.Bytes()
}
