package builder

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// mask stands where a secret stood.
const mask = "***"

// minSecret is the shortest value that is redacted: anything shorter would cut
// words of innocent text.
const minSecret = 4

// userInfo finds credentials in URLs.
var userInfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)([^/\s@"'<>]+)@`)

// Redactor replaces secrets in text. Safe for concurrent use.
type Redactor struct {
	replacer *strings.Replacer
}

// NewRedactor returns a Redactor for the values, each as it is, URL-escaped and in
// base64, line by line; values of fewer than 4 bytes are ignored. Credentials in
// URLs are redacted always.
func NewRedactor(values ...string) *Redactor {
	var forms []string
	for _, value := range values {
		for line := range strings.SplitSeq(value, "\n") {
			line = strings.TrimSpace(line)
			if len(line) < minSecret {
				continue
			}
			forms = append(forms, line, url.QueryEscape(line), url.PathEscape(line),
				base64.StdEncoding.EncodeToString([]byte(line)), strings.TrimRight(base64.URLEncoding.EncodeToString([]byte(line)), "="))
		}
	}
	// The longest first: a secret may contain another.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	pairs := make([]string, 0, 2*len(forms))
	for _, form := range slices.Compact(forms) {
		pairs = append(pairs, form, mask)
	}
	return &Redactor{replacer: strings.NewReplacer(pairs...)}
}

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	return userInfo.ReplaceAllString(r.replacer.Replace(s), "${1}"+mask+"@")
}

// maxLine is the longest line that is passed on; the rest of it is dropped.
const maxLine = 64 << 10

// Writer returns a writer that passes whole lines on to w without secrets. A line
// longer than 64 KiB is cut. Close passes on an unfinished last line; it does not
// close w. Not safe for concurrent use.
func (r *Redactor) Writer(w io.Writer) io.WriteCloser { return &redactingWriter{r: r, w: w} }

type redactingWriter struct {
	r    *Redactor
	w    io.Writer
	line []byte
	cut  bool
}

// Write never fails: a log that cannot be written must not fail a build.
func (w *redactingWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		room := maxLine - len(w.line)
		w.cut = w.cut || len(part) > room
		w.line = append(w.line, part[:min(len(part), room)]...)
		if ended {
			w.flush()
		}
		p = rest
	}
	return n, nil
}

func (w *redactingWriter) flush() {
	text := w.r.Text(string(w.line))
	if w.cut {
		// Half a secret may stand at the cut.
		text = text[:len(text)*15/16] + " … (line cut)"
	}
	_, _ = io.WriteString(w.w, text+"\n")
	w.line, w.cut = w.line[:0], false
}

func (w *redactingWriter) Close() error {
	if len(w.line) > 0 {
		w.flush()
	}
	return nil
}

// withoutUserInfo cuts credentials out of URLs.
func withoutUserInfo(text string) string { return userInfo.ReplaceAllString(text, "$1") }

// userInfos returns the credentials of URLs in text: whole, and the password.
func userInfos(text string) []string {
	var all []string
	for _, m := range userInfo.FindAllStringSubmatch(text, -1) {
		all = append(all, m[2])
		if _, password, ok := strings.Cut(m[2], ":"); ok {
			all = append(all, password)
			if plain, err := url.QueryUnescape(password); err == nil {
				all = append(all, plain)
			}
		}
	}
	return all
}
