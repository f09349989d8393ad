package main

import (
	"os"
	"strings"
	"testing"

	"kiln/builder"
)

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
