package kaniko_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/kaniko"
)

func TestExtraArgsAreSplitAsAShellWouldAndChecked(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		args  []builder.Arg
		flags []string
		err   string
	}{
		"":   {},
		"  ": {},
		`--build-arg A=b C=d --single-snapshot`: {
			args: []builder.Arg{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}}, flags: []string{"--single-snapshot=true"},
		},
		`--build-arg "KEY=a b" --build-arg=URL=https://x?a=b --build-arg EMPTY=`: {
			args: []builder.Arg{{Name: "KEY", Value: "a b"}, {Name: "URL", Value: "https://x?a=b"}, {Name: "EMPTY"}},
		},
		"--push-retry 9\n--cache --snapshot-mode redo --ignore-path /a --ignore-path /b": {
			flags: []string{"--push-retry=9", "--cache=true", "--snapshot-mode=redo", "--ignore-path=/a", "--ignore-path=/b"},
		},
		`--label 'a=$(id) #x' --cache false`: {flags: []string{"--label=a=$(id) #x", "--cache=false"}},
		`--build-arg`:                        {err: "--build-arg must be followed by NAME=value"},
		`--build-arg --cache`:                {err: "--build-arg must be followed by NAME=value"},
		`a5 --build-arg a=7`:                 {err: `"a5" stands before the first flag; flags begin with --`},
		`-c /etc`:                            {err: `"-c" stands before the first flag; flags begin with --`},
		`--cache -c`:                         {err: `--cache is true or false, not "-c"`},
		`--`:                                 {err: `"--" stands before the first flag; flags begin with --`},
		`--build arg GIT_TOKEN=token`:        {err: "--build is not a flag of the executor v1.27.5"},
		`--build-arg 123=456`:                {err: `--build-arg "123" is not NAME=value: letters, digits and _, not beginning with a digit`},
		`--label "a`:                         {err: "cannot be split into words: Unterminated double-quoted string"},
		"--label a=\x00":                     {err: "holds control characters"},
		`--snapshot-mode none --push-retry -1 --cache-ttl x --ignore-path a --annotation =`: {err: `--snapshot-mode: "none" is not one of full, redo, time
--push-retry: "-1" is not a number from 0 to 65535
--cache-ttl: "x" is not a duration such as 6h
--ignore-path: "a" is not an absolute path
--annotation: "=" is not key=value`},
		`--skip-tls-verify --context=/`: {err: `--skip-tls-verify cannot be set by a request: how registries are reached and trusted is the operator's decision, in the configuration of registries
--context cannot be set by a request: Kiln fetches the source; set spec.build.source`},
	} {
		args, flags, err := kaniko.ParseExtraArgs(text)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(want.err, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
		if diff := cmp.Diff(want.args, args); diff != "" {
			t.Errorf("build arguments of %q (-want +got):\n%s", text, diff)
		}
		if diff := cmp.Diff(want.flags, flags); diff != "" {
			t.Errorf("flags of %q (-want +got):\n%s", text, diff)
		}
	}
}

// TestEveryFlagOfTheExecutorIsDecidedAbout fails when a new executor has other flags.
func TestEveryFlagOfTheExecutorIsDecidedAbout(t *testing.T) {
	t.Parallel()
	executor, err := filepath.Abs("../../bin/kaniko-executor")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(executor); err != nil {
		t.Skipf("SKIPPED: the executor's flags are not compared: %s is missing (make build)", executor)
	}
	out, err := exec.CommandContext(t.Context(), executor, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([A-Za-z0-9-]+)`).FindAllStringSubmatch(string(out), -1)
	if len(names) < 40 {
		t.Fatalf("found %d flags in\n%s", len(names), out)
	}
	for _, name := range names {
		switch name[1] {
		case "help", "build-arg":
			continue
		}
		_, _, err := kaniko.ParseExtraArgs("--" + name[1])
		if err != nil && strings.Contains(err.Error(), "is not a flag") {
			t.Errorf("--%s is neither allowed nor owned", name[1])
		}
	}
}

// FuzzParseExtraArgs proves that no text brings a flag of Kiln's own to the executor,
// or a word that is not one flag.
func FuzzParseExtraArgs(f *testing.F) {
	for _, text := range []string{
		`--build-arg A=b C=d --cache`, `--label a='b --context=/'`, "--label=a=b\n--destination=x", `--\context=/`, `"--context" /`, `--"context"=/`, "--cache true true",
	} {
		f.Add(text)
	}
	flag := regexp.MustCompile(`(?s)^--([a-z-]+)=`)
	f.Fuzz(func(t *testing.T, text string) {
		args, flags, err := kaniko.ParseExtraArgs(text)
		if err != nil && (len(args) > 0 || len(flags) > 0) {
			t.Fatal("an error comes with values")
		}
		for _, got := range flags {
			m := flag.FindStringSubmatch(got)
			if m == nil {
				t.Fatalf("%q is not a flag with a value", got)
			}
			switch m[1] {
			case "context", "destination", "dockerfile", "digest-file", "secret", "build-arg", "insecure", "credential-helpers", "no-push", "force":
				t.Fatalf("%q comes through", got)
			}
		}
	})
}
