package dockerfile_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"kiln/builder/dockerfile"
)

var update = flag.Bool("update", false, "write the golden files")

func TestRenderMatchesGoldenFiles(t *testing.T) {
	t.Parallel()
	specs, err := filepath.Glob("testdata/*/spec.json")
	if err != nil || len(specs) == 0 {
		t.Fatalf("no specs: %v", err)
	}
	for _, path := range specs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			spec := readSpec(t, path)
			text, files, err := dockerfile.Render(spec)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{"Dockerfile": text}
			for _, file := range files {
				got[file.Name] = string(file.Data)
			}
			if *update {
				writeGolden(t, dir, got)
			}
			if diff := cmp.Diff(readGolden(t, dir), got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			head := text
			if spec.Extra != "" {
				parseStages(t, text)
				head = strings.TrimSuffix(text, strings.TrimSuffix(spec.Extra, "\n")+"\n")
			}
			checkText(t, spec, head, files)
		})
	}
}

func readSpec(t *testing.T, path string) dockerfile.Spec {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spec dockerfile.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func readGolden(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		if entry.Name() == "spec.json" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(data)
	}
	return files
}

func writeGolden(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name := range readGolden(t, dir) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRenderKeepsHostileStringsInTheirInstruction(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{
		"instruction in a second line": "echo a\nFROM evil\nRUN rm -rf /",
		"flag":                         "--mount=type=secret,id=X,target=/x cat /x",
		"end of flags":                 "-- --network=host id",
		"exec form":                    `["/bin/sh", "-c", "id"]`,
		"heredoc":                      "cat <<EOF",
		"heredoc in quotes":            `echo "<<EOF" '3<<X'`,
		"our delimiter":                "echo a\nKILN_EOF\nUSER root",
		"our delimiters":               "KILN_EOF\nKILN_EOF_2\nKILN_EOF_3",
		"delimiter with CR":            "echo a\r\nKILN_EOF\r\nUSER root\r\n",
		"delimiter with many CR":       "echo a\nKILN_EOF\r\r\r\nUSER root\r\r",
		"delimiter with tabs":          "echo a\n\tKILN_EOF\nUSER root",
		"line continuation":            `echo a \`,
		"continuation and spaces":      "echo a \\ \t ",
		"continuation in two lines":    "echo a \\\nUSER root",
		"escaped continuation":         `echo a \\`,
		"comment":                      "# escape=`",
		"directive":                    "# syntax=evil/frontend\n# escape=`\necho a \\",
		"vertical tab":                 "echo a\vUSER root",
		"line separators":              "echo a\u2028USER root\u2029USER root\u0085USER root",
		"unicode spaces around":        "\u00a0echo a\u3000",
		"byte order mark":              "\ufeff# escape=`\necho",
		"variables":                    "echo $HOME ${PATH} $(id) `id` \"$X\" '$Y'",
		"only backslash":               `\`,
		"one bracket":                  "[",
		"one dash":                     "-",
		"template":                     "{{ .Base }} %s %[1]s %!",
		"at the limit":                 strings.Repeat("x", 60_000),
		"above the limit":              strings.Repeat("x", 60_001),
		"many lines above the limit":   strings.Repeat("echo aaaaaaaaaa\n", 10_000),
		"one byte above, quoted":       "- " + strings.Repeat("\u00fc", 30_000),
		"interpreter":                  "#!/usr/bin/env python3\nprint('a')",
		"interpreter with argument":    "#! /bin/bash  -eu \nKILN_EOF\n",
		"interpreter above the limit":  "#!/bin/bash\n" + strings.Repeat("x", 60_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, secrets := range [][]string{nil, {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"}} {
				spec := dockerfile.Spec{
					Base: "python:3.12-slim", Args: []string{"A", "_b1"}, Commands: []string{"true", command, "echo end"},
					Requirements: []string{"a", "b"}, Secrets: secrets,
				}
				text, files, err := dockerfile.Render(spec)
				if err != nil {
					t.Fatal(err)
				}
				checkText(t, spec, text, files)
			}
		})
	}
}

func TestExtraCannotChangeWhatComesBeforeIt(t *testing.T) {
	t.Parallel()
	spec := dockerfile.Spec{Base: "python:3.12", Args: []string{"A"}, Commands: []string{"echo a", "echo\nb"}, Requirements: []string{"c"}}
	head, files, err := dockerfile.Render(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, extra := range []string{
		"USER 1000", "USER 1000\n", "\\\nUSER 1000", "# escape=`\nUSER a", "FROM b\nRUN c", "RUN a \\", "RUN <<E\na\nE", "KILN_EOF", "\r\nUSER 1\r\n",
	} {
		spec.Extra = extra
		text, got, err := dockerfile.Render(spec)
		if err != nil {
			t.Fatalf("Render(extra %q): %v", extra, err)
		}
		if rest, ok := strings.CutPrefix(text, head); !ok || strings.TrimSuffix(rest, "\n") != strings.TrimSuffix(extra, "\n") {
			t.Errorf("extra %q gives\n%s", extra, text)
		}
		if !strings.HasSuffix(text, "\n") || strings.HasSuffix(text, "\n\n") {
			t.Errorf("extra %q ends in %q", extra, text[len(text)-5:])
		}
		if diff := cmp.Diff(files, got); diff != "" {
			t.Errorf("extra %q changes files:\n%s", extra, diff)
		}
	}
	spec.Extra = "USER 1000\nENV A=b"
	text, _, err := dockerfile.Render(spec)
	if err != nil {
		t.Fatal(err)
	}
	stage := parse(t, text)
	if _, ok := stage.Commands[len(stage.Commands)-1].(*instructions.EnvCommand); !ok || len(stage.Commands) != 6 {
		t.Errorf("got %d instructions, want 6 with ENV at the end", len(stage.Commands))
	}
}

func TestRenderReportsAllFaultsWithTheirPlace(t *testing.T) {
	t.Parallel()
	_, _, err := dockerfile.Render(dockerfile.Spec{
		Base:         "python:3.12 AS x",
		Args:         []string{"OK", "A=b", "OK"},
		Secrets:      []string{"x,target=/etc/shadow"},
		Commands:     []string{"echo", "a\x00b", " \n\t", "a\rb", "#!/usr/bin/env -S python3\n", "#!sh", "\xff"},
		Requirements: []string{"ok", "a\x00", "b\nc", "d\u2028e", `f \`, "", "\xff"},
		Extra:        "USER a\x00",
	})
	if err == nil {
		t.Fatal("got no error")
	}
	want := []string{
		`base: "python:3.12 AS x" is not an image reference`,
		`args[1]: "A=b" is not a name: letters, digits and underscores, not beginning with a digit`,
		`args[2]: "OK" is named twice`,
		`secrets[0]: "x,target=/etc/shadow" is not a name: letters, digits and underscores, not beginning with a digit`,
		`commands[1]: holds a NUL byte`,
		`commands[2]: is blank`,
		`commands[3]: holds a carriage return that does not end a line`,
		`commands[4]: the first line "#!/usr/bin/env -S python3" must be #! with an absolute path and at most one plain argument`,
		`commands[5]: the first line "#!sh" must be #! with an absolute path and at most one plain argument`,
		`commands[6]: is not valid UTF-8`,
		`requirements[1]: holds a NUL byte`,
		`requirements[2]: holds a line break`,
		`requirements[3]: holds a line break`,
		`requirements[4]: ends with a backslash, which would join it with the next line`,
		`requirements[5]: is blank`,
		`requirements[6]: is not valid UTF-8`,
		`extra: holds a NUL byte`,
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckBase(t *testing.T) {
	t.Parallel()
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for _, ref := range []string{
		"scratch", "python", "python:3.12-slim", "mlrun/mlrun", "localhost/a", "localhost:5000/a/b:1", "Reg.example.com/a_b/c__d/e--f/g.h:T_1",
		"127.0.0.1:5000/kiln/base", "[::1]:5000/a", "python" + digest, "quay.io/a/b:1" + digest, "a@sha512:" + strings.Repeat("0", 128),
	} {
		if err := dockerfile.CheckBase(ref); err != nil {
			t.Errorf("CheckBase(%q) = %v", ref, err)
		}
	}
	for _, ref := range []string{
		"", " ", "python AS x", "python\nRUN id", "--platform=linux/arm64 python", "--platform=x", "$BASE", "${BASE}", "a:$T", "Python", "a//b", "../a", "/a", "a/",
		"a:", "a@", "a:b:c", "https://a/b", "a@sha256:abc", "a" + digest + "0", "a#b", `a\`, "a`", "\ufeffa", "ä", ".a", "a..b", "-a", "a-", strings.Repeat("a", 1025),
	} {
		if dockerfile.CheckBase(ref) == nil {
			t.Errorf("CheckBase(%q) = nil, want an error", ref)
		}
	}
}

func TestNormalize(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"echo a":                    "echo a",
		"  echo a \t":               "echo a",
		"\n\n echo a\n\n":           "echo a",
		"a\r\nb\r\n":                "a\nb",
		"a\r":                       "a",
		"a\rb":                      "a\rb",
		"\r\n  \r\na\r\n":           "a",
		"  a\n  b  \n ":             "  a\n  b",
		"a \\ ":                     "a \\ ",
		"a \\\n":                    "a \\",
		"a \\\n b":                  "a \\\n b",
		"\n#!/bin/bash\necho\n":     "#!/bin/bash\necho",
		" \t\n":                     "",
		"cat <<X\n\ttab\n\nX\n":     "cat <<X\n\ttab\n\nX",
		"\u00a0keep other spaces\v": "\u00a0keep other spaces\v",
	} {
		got := dockerfile.Normalize(in)
		if got != want {
			t.Errorf("Normalize(%q) = %q, want %q", in, got, want)
		}
		if again := dockerfile.Normalize(got); again != got {
			t.Errorf("Normalize(%q) = %q is not stable: %q", in, got, again)
		}
	}
}
