package builder

import "testing"

// FuzzFieldFraming holds that two lists of fields have the same digest only if they
// are the same, wherever the borders between names and values lie.
func FuzzFieldFraming(f *testing.F) {
	f.Add("name", "value", "a", "b", uint8(2))
	f.Add("", "", "", "", uint8(0))
	f.Add("\x00\x00\x00\x00\x00\x00\x00\x01", "x", "y", "", uint8(9))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, cut uint8) {
		original := []Field{{n1, v1}, {n2, v2}}
		want := digestOf(original)
		all := n1 + v1 + n2 + v2
		at := min(int(cut), len(all))
		for _, other := range [][]Field{
			{{all[:at], all[at:]}},
			{{all[:at], all[at:]}, {}},
			{{n2, v2}, {n1, v1}},
			{{n1, v1 + n2}, {"", v2}},
			{{n1 + v1, n2}, {v2, ""}},
			{{n1, v1}},
			{{n1, v1}, {n2, v2}, {}},
		} {
			same := len(other) == 2 && other[0] == original[0] && other[1] == original[1]
			if got := digestOf(other) == want; got != same {
				t.Errorf("%q and %q: same digest %t, want %t", original, other, got, same)
			}
		}
	})
}
