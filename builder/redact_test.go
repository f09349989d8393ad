package builder_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"testing"

	"kiln/builder"
)

func TestRedactorKnowsTheFormsOfASecret(t *testing.T) {
	t.Parallel()
	const secret = `p@ss/w"rd ü+1`
	r := builder.NewRedactor(secret)
	for name, form := range map[string]string{
		"plain":            secret,
		"query":            url.QueryEscape(secret),
		"path":             url.PathEscape(secret),
		"lower case":       strings.ToLower(url.QueryEscape(secret)),
		"base64":           base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64 raw":       base64.RawStdEncoding.EncodeToString([]byte(secret)),
		"base64 URL":       base64.URLEncoding.EncodeToString([]byte(secret)),
		"JSON":             `p@ss/w\"rd ü+1`,
		"inside of a word": "x" + secret + "y",
	} {
		got := r.Text("a " + form + " b")
		if strings.Contains(got, form) || !strings.HasPrefix(got, "a ") || !strings.HasSuffix(got, " b") || !strings.Contains(got, "***") {
			t.Errorf("%s: %q became %q", name, form, got)
		}
	}
}

func TestRedactorMasksWholeAndOverlappingSecrets(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		secrets    []string
		text, want string
	}{
		{[]string{"abcd", "abcdefgh"}, "abcdefgh abcd", "*** ***"},
		{[]string{"xxabcd", "abcdefgh"}, "xxabcdefgh", "***"},
		{[]string{"aaaa"}, "aaaaaaaaab", "***b"},
		{[]string{"abc", "", " "}, "abc is too short", "abc is too short"},
		{[]string{"  padded  "}, "[padded]", "[***]"},
		{[]string{"first line\nsecond line\n"}, "second line, first line", "***, ***"},
		{[]string{"abcd\nefgh"}, "abcd\nefgh", "***"},
		{[]string{"tokenX"}, "toktokenXenX", "tok***enX"},
		{[]string{"a***b"}, "aaa***bbb", "***"},
		{[]string{"a***b"}, strings.Repeat("a", 30_000) + "***" + strings.Repeat("b", 30_000), "***"},
		{nil, "nothing to hide", "nothing to hide"},
	} {
		if got := builder.NewRedactor(tc.secrets...).Text(tc.text); got != tc.want {
			t.Errorf("Text(%q) without %q = %q, want %q", tc.text, tc.secrets, got, tc.want)
		}
	}
}

func TestRedactorMasksUserInfoOfURLs(t *testing.T) {
	t.Parallel()
	r := builder.NewRedactor()
	for text, want := range map[string]string{
		"https://user:pass@host/x":               "https://***@host/x",
		"https://user:p@ss@host/x":               "https://***@host/x",
		"git+ssh://git@host/x":                   "git+ssh://***@host/x",
		"https://token@host and https://a:b@c":   "https://***@host and https://***@c",
		"https://a:b@c,https://d:e@f":            "https://***@c,https://***@f",
		"https://host/path@v1":                   "https://host/path@v1",
		"https://host?q=a@b":                     "https://host?q=a@b",
		"mail someone@host":                      "mail someone@host",
		"image registry.example/x@sha256:00":     "image registry.example/x@sha256:00",
		`{"url":"https://u:p@h/"}`:               `{"url":"https://***@h/"}`,
		"Looking in indexes: https://u:****@h/s": "Looking in indexes: https://***@h/s",
	} {
		if got := r.Text(text); got != want {
			t.Errorf("Text(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestWriterPassesWholeLines(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	w := builder.NewRedactor("s3cr3t").Writer(&out)
	for _, chunk := range []string{"one s3", "cr", "3t line\ntwo", " lines\n\npartial s3cr3t"} {
		if n, err := io.WriteString(w, chunk); n != len(chunk) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if want := "one *** line\ntwo lines\n\n"; out.String() != want {
		t.Errorf("before Close: %q, want %q", out.String(), want)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "late\n")
	_ = w.Close()
	if want := "one *** line\ntwo lines\n\npartial ***\n"; out.String() != want {
		t.Errorf("after Close: %q, want %q", out.String(), want)
	}
}

func TestWriterCutsLongLinesAndNoSecretInHalf(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef"
	for back := range len(secret) + 2 {
		var out strings.Builder
		w := builder.NewRedactor(secret).Writer(&out)
		line := strings.Repeat("x", 64<<10-back) + secret + strings.Repeat("y", 1<<20)
		_, _ = io.WriteString(w, line+"\nnext\n")
		head, rest, _ := strings.Cut(out.String(), "\n")
		if len(head) > 65<<10 || !strings.HasSuffix(head, "… (line cut)") || rest != "next\n" {
			t.Errorf("%d back: %d bytes, ends with %q, then %q", back, len(head), head[len(head)-30:], rest)
		}
		if strings.Contains(head, "0") {
			t.Errorf("%d back: part of the secret remains: %q", back, head[len(head)-50:])
		}
	}
	var out strings.Builder
	w := builder.NewRedactor().Writer(&out)
	_, _ = io.WriteString(w, strings.Repeat("x", 64<<10-20)+"https://user:password@host/\n")
	if strings.Contains(out.String(), "user") {
		t.Errorf("part of user info remains: %q", out.String()[64<<10-30:])
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriterOutlivesABrokenOne(t *testing.T) {
	t.Parallel()
	w := builder.NewRedactor().Writer(brokenWriter{})
	if n, err := io.WriteString(w, "a line\n"); n != 7 || err != nil {
		t.Errorf("Write = %d, %v, want 7 and no error", n, err)
	}
}

func TestWriterIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	w := builder.NewRedactor("s3cr3t").Writer(&out)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				_, _ = io.WriteString(w, "a s3cr3t line\n")
			}
		})
	}
	wg.Wait()
	if want := strings.Repeat("a *** line\n", 800); out.String() != want {
		t.Error("lines are torn")
	}
}

// FuzzRedactor holds that no secret of 8 bytes or more survives, in text or through
// a writer, whatever is around it and however it is chunked.
func FuzzRedactor(f *testing.F) {
	f.Add("hunter2-hunter2", "other-secret", "before ", " after", uint8(3), uint16(0))
	f.Add("aaaaaaaa", "aaaaaaaab", "aaaa", "aaab\n", uint8(1), uint16(7))
	f.Add("password", "https://u:password@h", "https://u:", "@h", uint8(5), uint16(65530))
	f.Fuzz(func(t *testing.T, one, two, before, after string, chunk uint8, pad uint16) {
		secrets := []string{strings.TrimSpace(one), strings.TrimSpace(two)}
		for i, s := range secrets {
			// Stars are what masks are made of; lines are redacted one by one.
			if len(s) < 8 || strings.ContainsAny(s, "*\n… (line cut)") {
				secrets[i] = "replaced-secret"
			}
		}
		text := strings.Repeat("~", int(pad)) + before + secrets[0] + after + secrets[1] + secrets[0] + before + "\n" + secrets[1]
		r := builder.NewRedactor(secrets...)
		var out strings.Builder
		w := r.Writer(&out)
		for rest := text; rest != ""; {
			n := min(int(chunk)+1, len(rest))
			_, _ = io.WriteString(w, rest[:n])
			rest = rest[n:]
		}
		_ = w.Close()
		for _, s := range secrets {
			if strings.Contains(r.Text(text), s) {
				t.Errorf("%q survives in text %q", s, text)
			}
			if strings.Contains(out.String(), s) {
				t.Errorf("%q survives a writer in %q", s, text)
			}
		}
	})
}

func TestRedactorLearns(t *testing.T) {
	t.Parallel()
	r := builder.NewRedactor("from-the-start")
	var out strings.Builder
	w := r.Writer(&out)
	r.Learn("learned-1", "", "abc")
	r.Learn("learned-1", "two\nlines-of-it")
	_, _ = io.WriteString(w, "from-the-start learned-1 "+base64.StdEncoding.EncodeToString([]byte("learned-1"))+" abc lines-of-it\n")
	if want := "*** *** *** abc ***\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestRedactorForgetsTheOldestOnly(t *testing.T) {
	t.Parallel()
	r := builder.NewRedactor("from-the-start")
	r.Learn("the-oldest", "used-again")
	values := make([]string, 0, 499)
	for i := range 499 {
		values = append(values, fmt.Sprintf("token-%d", i))
	}
	r.Learn("used-again")
	r.Learn(values...)
	for text, want := range map[string]string{
		"from-the-start": "***", "the-oldest": "the-oldest", "used-again": "***", "<token-0>": "<***>", "<token-498>": "<***>",
	} {
		if got := r.Text(text); got != want {
			t.Errorf("%s is shown as %s, want %s", text, got, want)
		}
	}
}

func TestRedactorIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	r := builder.NewRedactor()
	w := r.Writer(io.Discard)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for n := range 50 {
				r.Learn(fmt.Sprintf("token-%d-%d", i, n))
				if got := r.Text(fmt.Sprintf("<token-%d-%d>", i, n)); got != "<***>" {
					t.Errorf("shown: %s", got)
				}
				_, _ = io.WriteString(w, "token\n")
			}
		})
	}
	group.Wait()
}
