package function_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
)

// casesVariable names a file of facts that takes the place of the built-in ones.
const casesVariable = "KILN_MLRUN_CASES"

// checker compares what a case expects of MLRun with what Kiln does.
type checker func(c mlrunCase) []difference

// checkers holds who checks the cases of a group.
func checkers() map[string]checker {
	return map[string]checker{
		"server-build":       checkServerBuild,
		"client-spec":        checkClientSpec,
		"client-deploy":      checkClientDeploy,
		"project-enrichment": checkProject,
		"helper":             checkHelper,
		"run":                checkRun,
		"version":            checkVersion,
		"nuclio":             checkNuclio,
		"spark":              checkSpark,
		"project-image":      checkProjectImage,
		"api-build-function": notServed,
		"api-build-status":   notServed,
	}
}

// pendingGroups are those that no checker serves yet.
func pendingGroups() []string { return nil }

// difference is a fact that is not so in Kiln. Got is what Kiln does.
type difference struct{ Field, Want, Got string }

func (d difference) String() string {
	return fmt.Sprintf("%s\n      MLRun: %s\n      Kiln:  %s", d.Field, d.Want, d.Got)
}

// verdict is what a case comes to; the highest of its differences counts.
type verdict int

const (
	same verdict = iota
	notApplicable
	better
	wrong
	pending
)

func (v verdict) String() string {
	return [...]string{"same", "not applicable", "better", "wrong", "pending"}[v]
}

// TestKilnDecidesAsMLRunDoes holds Kiln to the recorded facts about MLRun. What differs
// has to be covered by a rule of the deviations.
func TestKilnDecidesAsMLRunDoes(t *testing.T) {
	t.Parallel()
	files, builtIn := []string{"testdata/mlrun-cases.json", "testdata/mlrun-page.json", "testdata/mlrun-page-images.json"}, true
	if file := os.Getenv(casesVariable); file != "" {
		files, builtIn = []string{file}, false
	}
	count, groups, used := map[string]map[verdict]int{}, []string{}, map[string]bool{}
	for _, file := range files {
		for _, c := range readFacts(t, file) {
			v := judge(t, c, used)
			if count[c.group] == nil {
				count[c.group] = map[verdict]int{}
				groups = append(groups, c.group)
			}
			count[c.group][v]++
		}
	}
	total := map[verdict]int{}
	for _, group := range groups {
		t.Logf("%-20s %s", group, figures(count[group]))
		for v, n := range count[group] {
			total[v] += n
		}
	}
	t.Logf("%-20s %s", "all", figures(total))
	for _, rule := range deviations() {
		if builtIn && !used[rule.Rule] {
			t.Errorf("no case needs the deviation %q", rule.Rule)
		}
	}
}

func figures(n map[verdict]int) string {
	text := fmt.Sprintf("same %d, better %d, not applicable %d, wrong %d", n[same], n[better], n[notApplicable], n[wrong])
	if n[pending] > 0 {
		text += fmt.Sprintf(", pending %d", n[pending])
	}
	return text
}

// judge checks a case and reports what is wrong with it.
func judge(t *testing.T, c mlrunCase, used map[string]bool) verdict {
	t.Helper()
	if slices.Contains(pendingGroups(), c.group) {
		return pending
	}
	check, ok := checkers()[c.group]
	if !ok {
		t.Errorf("%s: nobody checks group %q", c.id, c.group)
		return wrong
	}
	found, err := examine(check, c)
	if err != nil {
		t.Errorf("%s is not recognised: %v", c.id, err)
		return wrong
	}
	worst := same
	if !c.want.anyRead() {
		worst = notApplicable
	}
	for _, d := range found {
		rule, ok := covering(c, d)
		if !ok {
			t.Errorf("%s: %s\n    %s", c.id, c.what, d)
			worst = wrong
			continue
		}
		used[rule.Rule] = true
		if rule.Verdict != notApplicable || rule.Whole {
			worst = max(worst, rule.Verdict)
		}
	}
	return worst
}

// examine runs a checker. Facts that it does not look at are differences too.
func examine(check checker, c mlrunCase) (found []difference, err error) {
	defer func() {
		if r := recover(); r != nil {
			shape, ok := r.(shapeError)
			if !ok {
				panic(r)
			}
			err = shape
		}
	}()
	found = check(c)
	for _, f := range slices.Concat(c.in.unread(), c.want.unread()) {
		found = append(found, difference{Field: f.path, Want: f.value, Got: "nothing in Kiln stands for it"})
	}
	return found, nil
}

func covering(c mlrunCase, d difference) (deviation, bool) {
	for _, rule := range deviations() {
		if rule.Covers(c, d) {
			return rule, true
		}
	}
	return deviation{}, false
}

// readFacts reads a file of cases.
func readFacts(t testing.TB, file string) []mlrunCase {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var content struct{ Cases []map[string]json.RawMessage }
	if err := json.Unmarshal(data, &content); err != nil || len(content.Cases) == 0 {
		t.Fatalf("%s holds %d cases (%v)", file, len(content.Cases), err)
	}
	cases := make([]mlrunCase, 0, len(content.Cases))
	for _, keys := range content.Cases {
		cases = append(cases, newCase(keys))
	}
	slices.SortStableFunc(cases, func(a, b mlrunCase) int { return cmp.Compare(a.group, b.group) })
	return cases
}

// notServed stands for the HTTP API of MLRun, which Kiln has none of.
func notServed(c mlrunCase) []difference {
	c.in.readAll()
	c.want.readNothing()
	return []difference{{Field: "case.group", Want: c.group, Got: "events"}}
}
