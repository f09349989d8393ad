package kaniko

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var hexes = regexp.MustCompile(`(?:sha256:)?[0-9a-f]{64}`)

const line = `{"level":"info","msg":"RUN echo hi","time":"2026-01-02T03:04:05Z"}`

func TestOutputIsMadeHarmless(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ in, want string }{
		"colours":                               {"\x1b[31mred\x1b[0m\n", "red\n"},
		"title":                                 {"\x1b]0;pwned\x07text\n", "text\n"},
		"progress bar":                          {"10%\r50%\r100%\n", "100%\n"},
		"windows line ends":                     {"text\r\n", "text\n"},
		"control characters":                    {"a\x00b\x07c\x7fd\u009be\n", "abcde\n"},
		"direction overrides":                   {"a\u202eb\u2066c\n", "abc\n"},
		"tab and unicode stay":                  {"a\tü✓\n", "a\tü✓\n"},
		"invalid UTF-8":                         {"a\xff\xfeb\n", "a\uFFFDb\n"},
		"no newline at end":                     {"last words", "last words\n"},
		"empty lines":                           {"\n\n", "\n\n"},
		"an exception of Python":                {"ValueError: bad\n", "ValueError: bad\n"},
		"own line":                              {line + "\n", "Step 1: RUN echo hi\n"},
		"own line after output without newline": {"done" + line + "\n", "done\nStep 1: RUN echo hi\n"},
		"JSON of a command":                     {`{"level":"info","msg":"x","time":"2026-01-02T03:04:05Z","more":1}` + "\n", `{"level":"info","msg":"x","time":"2026-01-02T03:04:05Z","more":1}` + "\n"},
		"JSON without time":                     {`{"level":"info","msg":"RUN x"}` + "\n", `{"level":"info","msg":"RUN x"}` + "\n"},
		"warning":                               {`{"level":"warning","msg":"careful","time":"2026-01-02T03:04:05Z"}` + "\n", "warning: careful\n"},
		"warning about how the executor runs":   {`{"level":"warning","msg":"Kaniko is being run outside of a container. This can have dangerous effects on your system","time":"2026-01-02T03:04:05Z"}` + "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			read(t, []byte(tc.in), &out)
			if diff := cmp.Diff(tc.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLongLinesAreCut(t *testing.T) {
	t.Parallel()
	for _, n := range []int{maxOutput + 1, 5 << 20} {
		var out strings.Builder
		read(t, []byte(strings.Repeat("x", n)+"\nnext\n"), &out)
		if got := out.String(); len(got) > maxOutput+100 || !strings.HasSuffix(got, "(line cut)\nnext\n") {
			t.Errorf("%d bytes became %d: …%q", n, len(got), got[max(0, len(got)-40):])
		}
	}
}

func TestInstructionIsNamedInOneLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"RUN --mount=type=secret,id=A,env=A --mount=type=bind,source=x,target=/x pip install x": "RUN pip install x",
		"RUN a\nb":                        "RUN a …",
		"RUN " + strings.Repeat("é", 300): "RUN " + strings.Repeat("é", 196) + " …",
		"RUN \x1b[2Jx":                    "RUN x",
		"":                                "",
	} {
		if got := readable(in); got != want {
			t.Errorf("readable(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte(line+"\n"), 1)
	f.Add([]byte("x"+line+"\nerror building image: y\x1b[\r\n"), 255)
	f.Add([]byte("error building image: error building stage: failed to execute command: waiting for process to exit: exit status 99999999999999999999"), 1)
	f.Fuzz(func(t *testing.T, raw []byte, code int) {
		var out strings.Builder
		log := read(t, raw, &out)
		if len(raw) > 0 && out.Len() > 0 && !strings.HasSuffix(out.String(), "\n") {
			t.Errorf("log does not end in a whole line: %q", out.String())
		}
		for l := range strings.Lines(out.String()) {
			if !utf8.ValidString(l) || strings.ContainsAny(l, "\x1b\r\x00") {
				t.Errorf("harmful line %q", l)
			}
		}
		if err := Classify(Outcome{ExitCode: code, Log: log}); err == nil {
			t.Error("a failure without an error")
		}
	})
}
