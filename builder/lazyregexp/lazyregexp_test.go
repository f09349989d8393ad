package lazyregexp

import (
	"slices"
	"testing"
)

func TestMethodsAreThoseOfRegexp(t *testing.T) {
	t.Parallel()
	r := New(`(a+)b`)
	if !r.MatchString("xaab") || r.MatchString("a") {
		t.Error("MatchString() does not match what it should")
	}
	if got := r.FindStringSubmatch("xaab"); !slices.Equal(got, []string{"aab", "aa"}) {
		t.Errorf("FindStringSubmatch() = %q", got)
	}
	if got := r.FindAllString("ab aab", -1); !slices.Equal(got, []string{"ab", "aab"}) {
		t.Errorf("FindAllString() = %q", got)
	}
	if got := r.FindAllStringSubmatch("ab aab", 1); len(got) != 1 || !slices.Equal(got[0], []string{"ab", "a"}) {
		t.Errorf("FindAllStringSubmatch() = %q", got)
	}
	if got := r.ReplaceAllString("ab", "<$1>"); got != "<a>" {
		t.Errorf("ReplaceAllString() = %q", got)
	}
}

func TestAFaultyExpressionPanicsInTests(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("New() took a faulty expression")
		}
	}()
	New(`(`)
}
