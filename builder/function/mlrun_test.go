package function_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
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
			v, faults := judge(c, used)
			for _, fault := range faults {
				t.Error(fault)
			}
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

// judge checks a case, and says what is wrong with it.
func judge(c mlrunCase, used map[string]bool) (v verdict, faults []string) {
	if slices.Contains(pendingGroups(), c.group) {
		return pending, nil
	}
	check, ok := checkers()[c.group]
	if !ok {
		return wrong, []string{fmt.Sprintf("%s is not recognised: nobody checks group %q", c.id, c.group)}
	}
	found, err := examine(check, c)
	if err != nil {
		return wrong, []string{fmt.Sprintf("%s is not recognised: %v", c.id, err)}
	}
	if !c.want.anyRead() {
		v = notApplicable
	}
	for _, d := range found {
		rule, ok := covering(c, d)
		if !ok {
			faults = append(faults, fmt.Sprintf("%s: %s\n    %s", c.id, c.what, d))
			continue
		}
		used[rule.Rule] = true
		if rule.Verdict != notApplicable || rule.Whole {
			v = max(v, rule.Verdict)
		}
	}
	if len(faults) > 0 {
		v = wrong
	}
	return v, faults
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
func readFacts(tb testing.TB, file string) []mlrunCase {
	tb.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var content struct{ Cases []map[string]json.RawMessage }
	if err := json.Unmarshal(data, &content); err != nil || len(content.Cases) == 0 {
		tb.Fatalf("%s holds %d cases (%v)", file, len(content.Cases), err)
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

// TestMeasureFindsWhatIsWrong holds the runner to finding what no rule covers.
func TestMeasureFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const base = `"id": "x", "group": "server-build", "function": {"kind": "job", "spec": {"build": {"base_image": "a:1", "commands": ["c"], "requirements": ["r"]}}},
		"request": {"with_mlrun": false}, `
	for text, want := range map[string]string{
		`{` + base + `"expect": {"result": "build_started", "base_image": "a:1", "requirements_file": ["r"]}}`: "",
		`{` + base + `"expect": {"result": "build_started", "base_image": "a:2"}}`:                             "base_image",
		`{` + base + `"expect": {"result": "ready_without_build"}}`:                                            "result",
		`{` + base + `"expect": {"result": "error", "error": "x"}}`:                                            "result",
		`{` + base + `"expect": {"requirements_file": ["mlrun", "r"]}}`:                                        "requirements_file",
		`{` + base + `"expect": {"dockerfile": ["FROM a:1", "RUN d"]}}`:                                        "dockerfile.steps",
		`{` + base + `"expect": {"dockerfile": ["FROM a:1", "ARG X"]}}`:                                        "dockerfile.args",
		`{` + base + `"expect": {"context": "/context"}}`:                                                      "no source",
		`{` + base + `"expect": {"destination": "h.example/b:1"}}`:                                             "destination",
		`{` + base + `"expect": {"kaniko_args": ["--build-arg", "A=b"]}}`:                                      "kaniko_args.build-arg",
		`{` + base + `"expect": {"news": 1}}`:                                                                  "expect.news",
		`{` + base + `"news": 1, "expect": {}}`:                                                                "case.news",
		`{` + base + `"config": {"news": 1}, "expect": {}}`:                                                    "case.config.news",
		`{` + base + `"expect": {"base_image": 1}}`:                                                            "not recognised",
		`{"id": "x", "group": "news", "expect": {}}`:                                                           "not recognised",
		`{"id": "x", "group": "helper", "expect": {"rows": [{"news": 1}]}}`:                                    "not recognised",
	} {
		var keys map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &keys); err != nil {
			t.Fatal(err)
		}
		v, faults := judge(newCase(keys), map[string]bool{})
		if (want == "") != (v != wrong) || !strings.Contains(strings.Join(faults, "\n"), want) {
			t.Errorf("%s\nis %s: %q, want %q", text, v, faults, want)
		}
	}
}
