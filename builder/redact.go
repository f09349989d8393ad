package builder

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"io"
	"iter"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"kiln/builder/lazyregexp"
)

// mask stands where a secret stood.
const mask = "***"

// minSecret is the shortest value that is redacted: anything shorter would cut
// words of innocent text.
const minSecret = 4

// maxRounds bounds the work for one text.
const maxRounds = 16

// openUserInfo finds a URL's authority that the end of the text cuts off.
var openUserInfo = lazyregexp.New(`(://)[^/?#\s"'<>]+$`)

// maxLearned bounds how many values a Redactor learns.
const maxLearned = 500

// Redactor replaces secrets in text. Safe for concurrent use.
type Redactor struct {
	// forms are how secrets may appear.
	forms []string
	// others are what this one hides too.
	others []*Redactor

	mu sync.Mutex
	// learned are the values of Learn, the newest last, and late their forms.
	learned []string
	late    atomic.Pointer[[]string]
}

// NewRedactor returns a Redactor for the values, each as it is, escaped as in URLs
// and in JSON, and in base64. A value of several lines is redacted line by line.
// Values and lines of fewer than 4 bytes, without surrounding white space, are
// ignored. User info in URLs is redacted always.
func NewRedactor(values ...string) *Redactor { return &Redactor{forms: allForms(values)} }

// Learn adds values that became known later, tokens for example: they are hidden from
// now on, also by Redactors and Writers that were made before. Of those that were
// learned, the 500 that were learned last are kept.
func (r *Redactor) Learn(values ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := false
	for _, value := range values {
		known := slices.Index(r.learned, value)
		if known >= 0 {
			r.learned = slices.Delete(r.learned, known, known+1)
		}
		r.learned = append(r.learned, value)
		changed = changed || known < 0
	}
	if !changed {
		return
	}
	r.learned = slices.Delete(r.learned, 0, max(0, len(r.learned)-maxLearned))
	forms := allForms(r.learned)
	r.late.Store(&forms)
}

// all returns every form that is hidden.
func (r *Redactor) all() iter.Seq[string] {
	return func(yield func(string) bool) {
		var late []string
		if learned := r.late.Load(); learned != nil {
			late = *learned
		}
		for _, forms := range [][]string{r.forms, late} {
			for _, form := range forms {
				if !yield(form) {
					return
				}
			}
		}
		for _, other := range r.others {
			for form := range other.all() {
				if !yield(form) {
					return
				}
			}
		}
	}
}

func allForms(values []string) []string {
	var forms []string
	add := func(value string) {
		if value = strings.TrimSpace(value); len(value) >= minSecret {
			forms = append(forms, formsOf(value)...)
		}
	}
	for _, value := range values {
		add(value)
		for line := range strings.Lines(value) {
			add(line)
		}
	}
	// The longest first, so that a secret that contains another is one mask.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(forms)
}

func formsOf(value string) []string {
	raw := []byte(value)
	forms := []string{value, base64.StdEncoding.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw)}
	forms = append(forms, strings.TrimRight(forms[1], "="), strings.TrimRight(forms[2], "="))
	for _, escaped := range []string{url.QueryEscape(value), url.PathEscape(value), url.UserPassword("", value).String()[1:]} {
		forms = append(forms, escaped, lowerEscapes(escaped))
	}
	if quoted, err := json.Marshal(value); err == nil {
		forms = append(forms, string(quoted[1:len(quoted)-1]))
	}
	return forms
}

// lowerEscapes turns %2F into %2f.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	// A mask beside other text can look like a secret with stars in it, again and
	// again in a text that is made for it: that one is masked as a whole.
	for round, found := 0, true; found; round++ {
		if round == maxRounds {
			return mask
		}
		s, found = r.once(s)
	}
	if strings.Contains(s, "://") {
		s = userInfo.ReplaceAllString(s, "${1}"+mask+"@")
	}
	return s
}

// once replaces every byte that is part of any form, also where forms overlap.
func (r *Redactor) once(s string) (string, bool) {
	var hits [][2]int
	for form := range r.all() {
		for from := 0; ; {
			i := strings.Index(s[from:], form)
			if i < 0 {
				break
			}
			hits = append(hits, [2]int{from + i, from + i + len(form)})
			from += i + 1
		}
	}
	if len(hits) == 0 {
		return s, false
	}
	slices.SortFunc(hits, func(a, b [2]int) int { return a[0] - b[0] })
	var out strings.Builder
	done := 0
	for i := 0; i < len(hits); {
		start, end := hits[i][0], hits[i][1]
		for i++; i < len(hits) && hits[i][0] < end; i++ {
			end = max(end, hits[i][1])
		}
		out.WriteString(s[done:start] + mask)
		done = end
	}
	return out.String() + s[done:], true
}

// cutOff removes from the end of a text that was cut there what may be the
// beginning of a secret.
func (r *Redactor) cutOff(s string) string {
	keep := len(s)
	for form := range r.all() {
		for i := max(0, len(s)-len(form)+1); i < keep; i++ {
			if strings.HasPrefix(form, s[i:]) {
				keep = i
			}
		}
	}
	return openUserInfo.ReplaceAllString(s[:keep], "$1")
}

// maxLine is the longest line that is passed on; the rest of it is dropped.
const maxLine = 64 << 10

// Writer returns a writer that passes whole lines on to w without secrets. Of a line
// longer than 64 KiB the beginning is passed on with a note. Close passes on an
// unfinished last line; what is written afterwards is dropped. It does not close w.
// Write never fails, whatever w does: a log that cannot be written must not fail a
// build. Safe for concurrent use.
func (r *Redactor) Writer(w io.Writer) io.WriteCloser { return &redactingWriter{r: r, w: w} }

type redactingWriter struct {
	r *Redactor

	mu     sync.Mutex
	w      io.Writer
	line   []byte
	cut    bool
	closed bool
}

// Write implements io.Writer.
func (w *redactingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	for len(p) > 0 && !w.closed {
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
	text := string(w.line)
	if w.cut {
		text = w.r.Text(w.r.cutOff(text)) + " … (line cut)"
	} else {
		text = w.r.Text(text)
	}
	_, _ = io.WriteString(w.w, text+"\n")
	w.line, w.cut = w.line[:0], false
}

// Close implements io.Closer.
func (w *redactingWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.line) > 0 && !w.closed {
		w.flush()
	}
	w.closed = true
	return nil
}
