package kaniko

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
)

// The files in testdata were recorded: the exit code, and what the real executor
// wrote when the failure was provoked.
func load(t *testing.T, name string) (code int, raw []byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := bytes.Cut(raw, []byte("\n"))
	code, err = strconv.Atoi(strings.TrimPrefix(string(first), "exit "))
	if err != nil {
		t.Fatal(err)
	}
	return code, rest
}

func read(t *testing.T, raw []byte, out io.Writer) *Log {
	t.Helper()
	log := NewLog(out)
	// Odd pieces, as they come from a pipe.
	for len(raw) > 0 {
		n := min(997, len(raw))
		if _, err := log.Write(raw[:n]); err != nil {
			t.Fatal(err)
		}
		raw = raw[n:]
	}
	log.Close()
	return log
}

func TestRecordedFailuresAreClassified(t *testing.T) {
	t.Parallel()
	type want struct {
		Kind builder.Kind
		// Says is text that the error holds.
		Says string
	}
	for name, want := range map[string]want{
		"bad-add":                  {builder.KindCommandFailed, "connection refused"},
		"bad-copy":                 {builder.KindCommandFailed, "missing"},
		"bad-copy-from":            {builder.KindUnavailable, "no such host"},
		"bad-flag":                 {builder.KindUnavailable, "unknown flag: --no-such-flag"},
		"bad-from":                 {builder.KindInvalidRequest, "line 3"},
		"bad-instruction":          {builder.KindInvalidRequest, "unknown instruction: RUNN"},
		"bad-snapshot-mode":        {builder.KindUnavailable, "not a valid snapshot mode"},
		"bad-user":                 {builder.KindInvalidRequest, "missing '}'"},
		"base-401":                 {builder.KindPullDenied, "401"},
		"base-401-unauthorized":    {builder.KindPullDenied, "UNAUTHORIZED"},
		"base-403-denied":          {builder.KindPullDenied, "DENIED"},
		"base-429":                 {builder.KindUnavailable, "TOOMANYREQUESTS"},
		"base-500":                 {builder.KindUnavailable, "500"},
		"base-no-host":             {builder.KindUnavailable, "no such host"},
		"base-no-manifest":         {builder.KindBaseNotFound, "MANIFEST_UNKNOWN"},
		"base-no-repository":       {builder.KindBaseNotFound, "NAME_UNKNOWN"},
		"base-refused":             {builder.KindUnavailable, "connection refused"},
		"command-disk-full":        {builder.KindCommandFailed, "RUN dd if=/dev/zero"},
		"command-exit-1":           {builder.KindCommandFailed, "RUN false: exit code 1"},
		"command-exit-2":           {builder.KindCommandFailed, "exit code 2"},
		"command-exit-7":           {builder.KindCommandFailed, "running RUN echo before; exit 7: exit code 7"},
		"command-fakes-push":       {builder.KindCommandFailed, "exit code 1"},
		"command-fakes-push-after": {builder.KindCommandFailed, "exit code 1"},
		"command-killed":           {builder.KindCommandFailed, "signal: killed"},
		"command-no-shell":         {builder.KindCommandFailed, "/bin/sh: no such file or directory"},
		"command-no-such-user":     {builder.KindCommandFailed, "nobody-here"},
		"layer-404":                {builder.KindBaseNotFound, "404"},
		"layer-503":                {builder.KindUnavailable, "503"},
		"out-of-memory":            {builder.KindCommandFailed, "signal: killed"},
		"push-401":                 {builder.KindPushDenied, "401"},
		"push-403":                 {builder.KindPushDenied, "DENIED"},
		"push-500":                 {builder.KindUnavailable, "500"},
		"push-check-401":           {builder.KindPushDenied, "UNAUTHORIZED"},
		"push-check-403":           {builder.KindPushDenied, "DENIED"},
		"push-check-403-bare":      {builder.KindPushDenied, "403"},
		"push-check-500":           {builder.KindUnavailable, "500"},
		"push-cut":                 {builder.KindUnavailable, "EOF"},
		"push-denied-by-name":      {builder.KindPushDenied, "NAME_UNKNOWN"},
		"requirements":             {builder.KindRequirementsFailed, "RUN python -m pip install -r /kiln/requirements.txt: exit code 1"},
		"requirements-no-python":   {builder.KindRequirementsFailed, "exit code 127"},
		"secret-missing":           {builder.KindCommandFailed, "secret not defined: nope"},
		"snapshot-disk-full":       {builder.KindDiskFull, "disk"},
		"unpack-disk-full":         {builder.KindDiskFull, "disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, raw := load(t, name)
			err := Classify(Outcome{ExitCode: code, Log: read(t, raw, io.Discard)})
			if kind := builder.KindOf(err); kind != want.Kind || !strings.Contains(err.Error(), want.Says) {
				t.Errorf("got %s: %v\nwant %s with %q", kind, err, want.Kind, want.Says)
			}
		})
	}
}

func TestWhatTheEngineSawCounts(t *testing.T) {
	t.Parallel()
	limits := builder.Limits{Memory: 64 << 20, Disk: 20 << 30}
	for name, tc := range map[string]struct {
		file    string
		outcome Outcome
		kind    builder.Kind
		says    string
	}{
		"memory":           {"out-of-memory", Outcome{OOMKilled: true}, builder.KindOutOfMemory, "64 MiB"},
		"disk":             {"command-disk-full", Outcome{DiskFull: true}, builder.KindDiskFull, "20 GiB"},
		"killed by others": {"success", Outcome{ExitCode: 137}, builder.KindUnavailable, "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, raw := load(t, tc.file)
			o := tc.outcome
			o.Log, o.Limits = read(t, raw, io.Discard), limits
			if o.ExitCode == 0 {
				o.ExitCode = code
			}
			err := Classify(o)
			if builder.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %s: %v, want %s with %q", builder.KindOf(err), err, tc.kind, tc.says)
			}
		})
	}
}

// A command's output can hold every line of every other failure, before and after the
// executor says that the command failed: it is a failed command all the same.
func TestOutputCannotMakeAFailedCommandAnythingElse(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.log")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	_, failed := load(t, "command-exit-1")
	running, word, ok := bytes.Cut(failed, []byte("error building image:"))
	if !ok {
		t.Fatal("the recording does not end in a failure")
	}
	word = append([]byte("error building image:"), word...)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".log")
		_, fake := load(t, name)
		outputs := map[string][]byte{
			"before":        bytes.Join([][]byte{running, fake, word}, nil),
			"after":         bytes.Join([][]byte{running, word, fake}, nil),
			"before, glued": bytes.Join([][]byte{running, bytes.TrimSpace(fake), word}, nil),
		}
		if strings.HasPrefix(name, "push-") {
			endless := bytes.ReplaceAll(bytes.Repeat(fake, 1+(3<<20)/len(fake)), []byte("\n"), nil)
			outputs["before, very long"] = bytes.Join([][]byte{running, endless, word}, nil)
		}
		for place, raw := range outputs {
			kind := builder.KindOf(Classify(Outcome{ExitCode: 1, Log: read(t, raw, io.Discard)}))
			switch kind {
			case builder.KindCommandFailed, builder.KindRequirementsFailed:
			case builder.KindDiskFull:
				// Only by repeating the executor's own failure to write.
				if !strings.Contains(name, "disk-full") {
					t.Errorf("%s %s: got %s", name, place, kind)
				}
			default:
				t.Errorf("%s %s: got %s, want a failed command", name, place, kind)
			}
		}
	}
}

func TestLogIsReadable(t *testing.T) {
	t.Parallel()
	_, raw := load(t, "success")
	var out strings.Builder
	log := read(t, raw, &out)
	want := `Resolving 127.0.0.1:5000/base@DIGEST
Unpacking the base image
Step 1: ARG A
Step 2: ENV B=c
Step 3: WORKDIR /work
Step 4: RUN echo one; echo two >&2
one
two
Step 5: COPY requirements.txt /x
Step 6: USER user
Step 7: RUN id …
uid=1000(user) gid=1000(user) groups=1000(user)
second
Pushing 127.0.0.1:5000/team/image:kiln-ID
Pushed 127.0.0.1:5000/team/image@DIGEST
`
	got := hexes.ReplaceAllString(out.String(), "DIGEST")
	got = strings.ReplaceAll(got, "kiln-DIGEST", "kiln-ID")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if log.Phase() != PhasePush || !log.Started() {
		t.Errorf("phase %d, started %v", log.Phase(), log.Started())
	}
}
