package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

func TestReadmeHasTheCurrentConfigurationTable(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "<!-- config:begin -->\n")
	table, _, ended := strings.Cut(rest, "<!-- config:end -->")
	if !ok || !ended {
		t.Fatal("README.md has no table between config:begin and config:end")
	}
	var want strings.Builder
	if err := writeConfigTable(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), table); diff != "" {
		t.Errorf("README.md is out of date, run `make docs` (-code +README):\n%s", diff)
	}
}

func TestReadmeExplainsEveryErrorCode(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range builder.Kinds() {
		if !strings.Contains(string(readme), "`"+string(kind)+"`") {
			t.Errorf("README.md does not explain %s", kind)
		}
	}
}
