package builder_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/schemas"
)

func TestKindsAreTheSchemasCodes(t *testing.T) {
	t.Parallel()
	var got []string
	for _, k := range builder.Kinds() {
		got = append(got, string(k))
	}
	want := schemas.FailureCodes()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("kinds (-schema +builder):\n%s", diff)
	}
}

func TestEveryKindThatTravelsHasAHint(t *testing.T) {
	t.Parallel()
	seen := map[string]builder.Kind{}
	for _, k := range builder.Kinds() {
		hint := k.Hint()
		if !strings.HasSuffix(hint, ".") || strings.Contains(hint, ". ") {
			t.Errorf("hint of %s is not one sentence: %q", k, hint)
		}
		if other, double := seen[hint]; double {
			t.Errorf("%s and %s have the same hint", k, other)
		}
		seen[hint] = k
	}
	for _, k := range []builder.Kind{builder.KindInterrupted, builder.KindLeaseLost, "unknown"} {
		if k.Hint() != "" || k.Retryable() || slices.Contains(builder.Kinds(), k) {
			t.Errorf("%s does not travel, but has hint %q, retryable %t", k, k.Hint(), k.Retryable())
		}
	}
}

func TestRetryableKinds(t *testing.T) {
	t.Parallel()
	for kind, want := range map[builder.Kind]bool{
		builder.KindUnavailable: true, builder.KindTimeout: true, builder.KindDiskFull: true,
		builder.KindPushDenied: true, builder.KindPullDenied: true, builder.KindCanceled: true, builder.KindQueueFull: true,
		builder.KindInvalidRequest: false, builder.KindConflict: false, builder.KindCommandFailed: false,
		builder.KindRequirementsFailed: false, builder.KindBaseNotFound: false, builder.KindOutOfMemory: false,
	} {
		if kind.Retryable() != want {
			t.Errorf("%s.Retryable() = %t, want %t", kind, !want, want)
		}
	}
}
