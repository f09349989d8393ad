package events

import (
	"cmp"
	"encoding/json"
	"regexp"
	"strings"
)

// blanks are what MLRun turns into one dash in a function's name.
var blanks = regexp.MustCompile(`[\s_]+`)

// Identify reads project, name and tag of a function object as well as it can, for
// events about requests that cannot be read any further. Missing parts get MLRun's
// defaults: project "default", tag "latest".
func Identify(function json.RawMessage) Function {
	var object struct {
		Metadata struct {
			Name    any `json:"name"`
			Project any `json:"project"`
			Tag     any `json:"tag"`
		} `json:"metadata"`
	}
	// What cannot be read stays empty.
	_ = json.Unmarshal(function, &object)
	m := object.Metadata
	return Function{
		Project: cmp.Or(text(m.Project), "default"),
		Name:    NormalizeName(text(m.Name)),
		Tag:     cmp.Or(text(m.Tag), "latest"),
	}
}

// NormalizeName applies MLRun's rule for function names: lower case, runs of white
// space and underscores become one dash.
func NormalizeName(name string) string {
	return strings.ToLower(blanks.ReplaceAllString(name, "-"))
}

// text returns v if it is a string, bounded.
func text(v any) string {
	s, _ := v.(string)
	if len(s) > 253 {
		s = strings.ToValidUTF8(s[:253], "")
	}
	return s
}
