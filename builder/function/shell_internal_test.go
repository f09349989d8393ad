package function

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// FuzzShellStepsAreTheShells proves that words which are taken for plain are the ones
// that a real shell makes of the text.
func FuzzShellStepsAreTheShells(f *testing.F) {
	for _, text := range []string{
		"apt-get install -y gcc", `pip install "a>=1" 'b; c' d'e'"f"`, "a \\\n  b\\\nc", "a=~ b~c x:~", `"" ''`, "a\tb  c ", "-- a", `'$x' "'"`,
	} {
		f.Add(text)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		f.Skip("SKIPPED: words are not compared with a shell's: there is no sh")
	}
	f.Fuzz(func(t *testing.T, text string) {
		var steps [][]string
		for step, ok := range shellSteps(text) {
			if !ok {
				return
			}
			steps = append(steps, step)
		}
		if len(steps) != 1 || len(steps[0]) == 0 || strings.ContainsAny(text, "*?") {
			return
		}
		out, err := exec.CommandContext(t.Context(), sh, "-c", `printf '%s\0' `+text).Output()
		if err != nil {
			t.Fatalf("sh refuses %q: %v", text, err)
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		if !slices.Equal(steps[0], got) {
			t.Fatalf("%q is %q, the shell has %q", text, steps[0], got)
		}
	})
}
