// Package lazyregexp compiles regular expressions when they are first used, as
// internal/lazyregexp of the Go project does: a program that starts for one command
// does not pay for the expressions of all others. Tests compile them at once, so that
// a faulty one cannot hide.
package lazyregexp

import (
	"os"
	"regexp"
	"strings"
	"sync"
)

// Regexp is a regular expression that is compiled once, when it is first used. Its
// methods are those of regexp.Regexp. Safe for concurrent use.
type Regexp struct{ get func() *regexp.Regexp }

// New returns the regular expression text. When it is none, the first use panics.
func New(text string) *Regexp {
	r := &Regexp{get: sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })}
	if strings.HasSuffix(os.Args[0], ".test") {
		r.get()
	}
	return r
}

// MatchString reports whether s contains a match.
func (r *Regexp) MatchString(s string) bool { return r.get().MatchString(s) }

// FindStringSubmatch returns the leftmost match with its groups; nil: there is none.
func (r *Regexp) FindStringSubmatch(s string) []string { return r.get().FindStringSubmatch(s) }

// FindAllString returns the first n matches, all if n is negative.
func (r *Regexp) FindAllString(s string, n int) []string { return r.get().FindAllString(s, n) }

// FindAllStringSubmatch returns the first n matches with their groups, all if n is
// negative.
func (r *Regexp) FindAllStringSubmatch(s string, n int) [][]string {
	return r.get().FindAllStringSubmatch(s, n)
}

// ReplaceAllString replaces all matches; $1 in by stands for a group.
func (r *Regexp) ReplaceAllString(s, by string) string { return r.get().ReplaceAllString(s, by) }
